"""What a study is: shapes, recipe, data, seeds and sweeps, and the trials that follow from them.

Pure values: imports neither torch nor ray, reads no file. A trial's identity is a hash of what it is (architecture, recipe, data, seed),
never of where it runs.

    trials = expand(Study(sweeps=("width:n_embd=32,64,128",), seeds=(1, 2, 3)), data_key="stories-v1")   # 9 trials
"""

import hashlib
import json
import math
import re
import unicodedata
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

from models import module_file
from models.config import BASE, ModelConfig, Shape
from study.sweeps import Sweep, parse_sweep

RECIPE_VERSION = 1
"""Raise it when the training code's numerics change: stored rows of an older version are then stale, never mixed in."""

_ADDED_LATER: dict[str, Any] = {f"shape.{name}": 0 for name in BASE} | {
    "shape.module": "",
    "shape.extra": {},
    "column": "text",
    "tokenizer": "char",
    "vocab_size": 0,
}
"""Fields added after the first release with the value that means "as before": left out of the identity when they have it,
so that adding a field does not re-address every stored trial."""


_SEQUENCES_OF = {"tokens_per_step": "batch_size", "tokens_per_evaluation": "eval_windows"}
"""What a sweep may give in tokens instead: the field then follows from the block size."""


@dataclass(frozen=True)
class TrainConfig:
    """The recipe: how one model is trained. AdamW on matrices with decay, gradient clipping, warm-up, then a schedule."""

    batch_size: int = 8
    """sequences per optimizer step: larger ones are smoother steps, and fewer for a text"""
    n_steps: int = 2000
    """optimizer steps: with batch_size and block_size the training length; n_tokens in a sweep sets them"""
    lr: float = 4e-3
    """peak learning rate, at the centre where lr_exponent is not 0"""
    min_lr_ratio: float = 0.1
    """final learning rate over the peak: a small end settles the weights"""
    warmup_steps: int = 100
    """steps of linear warm-up, before which AdamW's moments know too little for the full rate"""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """cosine decay; warm-up, stable, linear decay (WSD), whose lengths share one run; or constant after warm-up"""
    decay_fraction: float = 0.2
    """share of the steps in which WSD decays"""
    weight_decay: float = 0.1
    """AdamW decay of matrices (never of norms)"""
    beta1: float = 0.9
    """AdamW first moment: memory of the gradient"""
    beta2: float = 0.99
    """AdamW second moment: memory of its square"""
    grad_clip: float = 1.0
    """largest global gradient norm; 0 turns clipping off"""
    dropout: float = 0.0
    """dropout probability, for text that is seen many times"""
    unique_tokens: int = 0
    """train on the first so many tokens only, again and again; 0 uses all"""
    eval_interval: int = 250
    """steps between evaluations: the points of a curve, and where lengths under WSD part"""
    eval_windows: int = 256
    """fixed validation windows of block_size tokens, the same for every trial"""

    def __post_init__(self) -> None:
        for name in ("batch_size", "n_steps", "eval_interval", "eval_windows"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        require(math.isfinite(self.lr) and self.lr > 0, f"lr={self.lr} must be a positive number, for example 1e-3")
        require(0 <= self.min_lr_ratio <= 1, f"min_lr_ratio={self.min_lr_ratio} must be between 0 and 1")
        require(self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps} must be 0 or more")
        require(self.schedule in ("cosine", "wsd", "constant"), f"schedule={self.schedule!r} is not one of cosine, wsd, constant")
        require(0 < self.decay_fraction <= 1, f"decay_fraction={self.decay_fraction} must be above 0 and at most 1")
        require(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must be 0 or more")
        require(0 <= self.beta1 < 1 and 0 <= self.beta2 < 1, f"beta1={self.beta1} and beta2={self.beta2} must be at least 0 and below 1")
        require(self.grad_clip >= 0, f"grad_clip={self.grad_clip} must be 0 (off) or more")
        require(0 <= self.dropout < 1, f"dropout={self.dropout} must be at least 0 and below 1")
        require(self.unique_tokens >= 0, f"unique_tokens={self.unique_tokens} must be 0 (all) or more")

    def lr_at(self, step: int) -> float:
        """Learning rate of the optimizer step with this index, 0 <= step < n_steps.

        Linear warm-up, then a cosine to min_lr_ratio * lr (Loshchilov & Hutter 2017), WSD (Hu et al. 2024, MiniCPM), or constant.
        """
        if step < self.warmup_steps:
            return self.lr * (step + 1) / (self.warmup_steps + 1)
        low = self.lr * self.min_lr_ratio
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "wsd":
            decay_steps = max(1, round(self.decay_fraction * self.n_steps))
            left = (self.n_steps - step) / decay_steps
            return self.lr if left >= 1 else low + (self.lr - low) * left
        progress = (step - self.warmup_steps) / max(1, self.n_steps - self.warmup_steps)
        return low + 0.5 * (1 + math.cos(math.pi * progress)) * (self.lr - low)


@dataclass(frozen=True)
class DataConfig:
    """Which text. A path means the user's own text."""

    name: str = "stories"
    """stories: embedded corpus with known entropy; tinystories; hub:OWNER/DATASET[@REVISION][/BEGINNING][:COLUMN] of the Hugging Face
    hub; text: your own (--data.path)"""
    path: str = ""
    """a text of your own: UTF-8, or .jsonl, .parquet, .gz, or a folder of them; or a folder with train.bin and val.bin (see vocab_size)"""
    column: str = "text"
    """the text's column in .jsonl and .parquet files"""
    tokenizer: str = "char"
    """char; bytes; bpe:SIZE, learned from the training text; or a tokenizer.json"""
    vocab_size: int = 0
    """number of token ids in arrays of them, which do not say it themselves; 0 for texts"""
    train_chars: int = 4_000_000
    """stories: characters of training text"""
    seed: int = 0
    """stories: seed of the corpus; another one is another text of the same kind"""
    train_bytes: int = 0
    """tinystories: use a prefix of so many bytes of the training file; 0 uses all"""

    def __post_init__(self) -> None:
        if self.path:  # a file of one's own wins over the study's text: `original --data.path my.txt`
            object.__setattr__(self, "name", "text")
        known = self.name in ("stories", "tinystories", "text") or self.name.startswith("hub:")
        require(known, f"data.name={self.name!r} is not one of stories, tinystories, text, hub:OWNER/DATASET")
        require(self.name != "text" or bool(self.path), "data.name=text needs a file; give --data.path FILE")
        size = re.fullmatch(r"bpe:(\d+)", self.tokenizer)
        require(
            self.tokenizer in ("char", "bytes") or self.tokenizer.endswith(".json") or (size is not None and int(size[1]) > 258),
            f"data.tokenizer={self.tokenizer!r} is not one of char, bytes, bpe:SIZE with a SIZE above 258, a tokenizer.json",
        )
        require(self.vocab_size >= 0, f"data.vocab_size={self.vocab_size} must be the number of token ids in your arrays")
        require(self.train_chars >= 1000, f"data.train_chars={self.train_chars} is too short to train on; give 1000 or more")
        require(self.train_bytes >= 0, f"data.train_bytes={self.train_bytes} must be 0 (all) or more")

    @property
    def from_hub(self) -> bool:
        """Whether the text comes over the network."""
        return self.name == "tinystories" or self.name.startswith("hub:")


@dataclass(frozen=True)
class Trial:
    """One model to train. `sweeps` and `lr_status` describe why it is trained and are no part of its identity."""

    shape: Shape
    train: TrainConfig
    data: DataConfig
    seed: int
    data_key: str = ""
    sweeps: tuple[str, ...] = ()
    lr_status: str = "fixed"
    may_stop: bool = False
    """a search made it: where it was STOPPED it has ended"""

    @cached_property
    def config_id(self) -> str:
        """16 hex digits naming the configuration (the trial without its seed)."""
        return _digest(self._identity())

    @property
    def trial_id(self) -> str:
        """config_id and seed: replicates sort together and a person can tell them apart."""
        return f"{self.config_id}-s{self.seed}"

    def model(self, vocab_size: int) -> ModelConfig:
        """The network of this trial for data with so many distinct tokens."""
        return ModelConfig(**vars(self.shape), vocab_size=vocab_size)

    @property
    def n_tokens(self) -> int:
        """Training tokens seen at the last step."""
        return self.train.n_steps * self.train.batch_size * self.shape.block_size

    def flops(self, vocab_size: int) -> float:
        """Expected training FLOPs, evaluation excluded."""
        return float(self.model(vocab_size).flops_per_token) * self.n_tokens

    @property
    def bundle_key(self) -> tuple[Any, ...]:
        """Trials may share a bundle where this is equal: one shape, one batch, one length, one evaluation rhythm.

        Seeds, learning rates, weight decay, betas, clipping, schedules and the share of unique data may differ. Dropout draws from one
        stream per process, so a trial with dropout is bundled with none but itself, and so is a model of the user's own.
        """
        train = self.train
        alone = self.trial_id if train.dropout or self.shape.module else ""
        return self.shape, train.batch_size, train.n_steps, train.eval_interval, train.eval_windows, alone

    def _identity(self) -> dict[str, Any]:
        parts: dict[str, Shape | TrainConfig] = {"shape": self.shape, "train": self.train}
        flat = {f"{group}.{f.name}": getattr(value, f.name) for group, value in parts.items() for f in fields(value)}
        flat |= {"shape.module": module_file.identity(self.shape.module), "shape.extra": dict(self.shape.extra)}
        kept = {key: value for key, value in flat.items() if not (key in _ADDED_LATER and _ADDED_LATER[key] == value)}
        data = self.data_key or {key: value for key, value in vars(self.data).items() if _ADDED_LATER.get(key) != value}
        return {**kept, "data": data, "recipe_version": RECIPE_VERSION}


@dataclass(frozen=True)
class Study:
    """A question and everything needed to answer it."""

    question: str = "What do depth, width, heads, or simply more parameters buy?"
    """the question, written before the study runs"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """one replicate of every configuration per seed; the same seeds everywhere, so that comparisons are paired"""
    sweeps: tuple[str, ...] = ()
    """NAME:FIELD=V1,V2,... (one factor around the centre), NAME:kind=grid:FIELD=...:FIELD=...,
    NAME:kind=matched:params=...:aspects=...:head_dims=... (equal size, different shape), or
    NAME:kind=search:lr=LOW,HIGH:n_embd=... or :over=SWEEP (the best learning rate of each size, then all seeds there)"""
    lr_exponent: float = 0.0
    """lr = train.lr * (params_non_embedding / lr_reference) ** lr_exponent; 0 gives every size the same lr"""
    lr_reference: int = 0
    """params_non_embedding at which train.lr holds; 0 means the centre's"""
    parametrization: Literal["standard", "mup", "completep"] = "standard"
    """mup (Yang et al. 2022): initialization, learning rates and multipliers follow the width from the centre's (or
    model.base_width), so that the best lr moves less with width; completep (Dey et al. 2025): the depth, too, from the centre's (or
    model.base_depth)"""
    model: Shape = field(default_factory=Shape)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        text = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in self.question)  # it reaches terminals and files
        object.__setattr__(self, "question", " ".join(text.split()))
        object.__setattr__(self, "model", self.model.under(self.parametrization))
        require(
            self.parametrization == "standard" or not self.lr_exponent,
            f"lr_exponent={self.lr_exponent} and parametrization={self.parametrization} both change the learning rate with size; "
            "set lr_exponent to 0",
        )
        require(bool(self.seeds), "seeds is empty; give at least one, for example --seeds 1 2 3")
        require(len(set(self.seeds)) == len(self.seeds), f"seeds={list(self.seeds)} names a seed twice; each replicate needs its own")
        require(all(0 <= seed < 2**31 for seed in self.seeds), f"seeds={list(self.seeds)} must lie between 0 and 2147483647")
        names = [sweep.name for sweep in self.parsed_sweeps]
        require(len(set(names)) == len(names), f"sweeps {names} share a name; give each its own")
        matched = self.model.module and [sweep.name for sweep in self.parsed_sweeps if sweep.kind == "matched"]
        require(not matched, f"sweep {matched} is matched by the built-in model's parameters; with model.module list shapes (kind=grid)")
        require(abs(self.lr_exponent) <= 5, f"lr_exponent={self.lr_exponent} must lie between -5 and 5; -0.15 is usual, 0 turns it off")
        require(self.lr_reference >= 0, f"lr_reference={self.lr_reference} must be 0 (the centre's) or a number of parameters")

    @cached_property
    def parsed_sweeps(self) -> tuple[Sweep, ...]:
        """The sweeps as values, read once."""
        return tuple(map(parse_sweep, self.sweeps))


def expand(study: Study, data_key: str = "") -> list[Trial]:
    """All trials of a study that are known beforehand, each once, with the names of every sweep that holds it; seeds outermost.

    Args:
        data_key: names the data's content (see `study.data.corpus`), so that changed data gives new trials.

    Raises:
        ValueError: a sweep asks for an impossible shape or an unknown field.
    """
    found: dict[tuple[Shape, TrainConfig], list[str]] = {}
    for sweep in study.parsed_sweeps or [Sweep(name="single")]:
        if sweep.kind == "search":  # its trials follow from what was recorded: study.search
            continue
        for change in sweep.changes():
            found.setdefault(changed(study, change, sweep.name), []).append(sweep.name)
    return [
        Trial(shape, train, study.data, seed, data_key, tuple(dict.fromkeys(names)))
        for seed in study.seeds
        for (shape, train), names in found.items()
    ]


def changed(study: Study, change: dict[str, Any], sweep: str) -> tuple[Shape, TrainConfig]:
    """The centre with some fields changed; tokens become sequences and steps, lr follows the study's rule unless it is changed."""
    kinds: dict[str, Any] = {f.name: type(getattr(config, f.name)) for config in (study.model, study.train) for f in fields(config)}
    for name in (*BASE, "module", "extra"):  # of the whole study: what muP and CompleteP compare with, and whose model it is
        del kinds[name]
    kinds |= dict.fromkeys(("n_tokens", *_SEQUENCES_OF), int) | {f"extra.{name}": lambda value: value for name, _ in study.model.extra}
    unknown = set(change) - set(kinds)
    require(not unknown, f"sweep {sweep!r} changes unknown field {sorted(unknown)}; allowed are {sorted(kinds)}")
    try:
        given = {name: _as_kind(kinds[name], name, value) for name, value in change.items()}
        n_tokens = given.pop("n_tokens", None)
        require(n_tokens is None or n_tokens >= 1, f"n_tokens={n_tokens} must be at least 1")
        given |= _sequences(given, study.model.block_size)
        extra = {name: given.pop(f"extra.{name}", value) for name, value in study.model.extra}
        shape = replace(study.model, **{n: v for n, v in given.items() if hasattr(study.model, n)}, extra=tuple(extra.items()))
        train = replace(study.train, **{name: value for name, value in given.items() if not hasattr(study.model, name)})
    except ValueError as error:
        raise ValueError(f"sweep {sweep!r}: {error}") from None
    require(
        not (shape.module and train.dropout), f"train.dropout={train.dropout} belongs to the built-in model; give yours a number of its own"
    )
    if n_tokens is not None:
        train = replace(train, n_steps=max(1, round(n_tokens / (train.batch_size * shape.block_size))))
    if study.lr_exponent and "lr" not in change:
        reference = study.lr_reference or study.model.params_non_embedding
        train = replace(train, lr=float(f"{train.lr * (shape.params_non_embedding / reference) ** study.lr_exponent:.3g}"))
    return shape, train


def _sequences(given: dict[str, Any], block_size: int) -> dict[str, int]:
    """Takes numbers of tokens out of a change and returns them as numbers of sequences, so that contexts compare at equal tokens."""
    found, block = {}, given.get("block_size", block_size)
    for tokens, sequences in _SEQUENCES_OF.items():
        if tokens in given:
            value = given.pop(tokens)
            require(sequences not in given, f"both {tokens} and {sequences} are given, and one follows from the other; choose one")
            require(
                value >= block and value % block == 0,
                f"{tokens}={value} is not a whole number of sequences of block_size={block}; give a multiple of {block}",
            )
            found[sequences] = value // block
    return found


def _as_kind(kind: Any, name: str, value: Any) -> Any:
    """A sweep's value with the type of the field it replaces."""
    if kind is str:
        return str(value)
    if isinstance(value, str):
        raise ValueError(f"{name}={value} is not a number; give numbers such as 1, 64 or 1e-3")
    if kind is int and not float(value).is_integer():
        raise ValueError(f"{name}={value} is not a whole number; give whole numbers such as 1, 64 or 4M")
    return kind(value)


def _digest(facts: dict[str, Any]) -> str:
    """Hash of canonical JSON: key order and int against float make no difference."""

    def canonical(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: canonical(inner) for key, inner in value.items()}
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return repr(float(value))
        return value

    return hashlib.sha256(json.dumps(canonical(facts), sort_keys=True).encode()).hexdigest()[:16]


def require(condition: bool, message: str) -> None:
    """Refuse (ValueError) what a person gave unless a condition holds."""
    if not condition:
        raise ValueError(message)
