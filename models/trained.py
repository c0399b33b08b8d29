"""A trained model and what one does with it: let it write, score a text, hand it to another library.

model = load("results/quick")                  # the best trial; load("results/quick", "0123") is another, by the beginning of its id
print(model.generate("Once upon a time"))
print(model.score(Path("my.txt").read_text()))
model.export("my-gpt2")                        # a folder for `transformers`
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from models import weights
from models.generate import generate
from models.home import expanded
from models.tokenizer import END_OF_TEXT, UNKNOWN, Tokenizer
from models.transformer import Network, Transformer

BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text: its loss, with a standard error over blocks of one context."""

    nats_per_character: float
    standard_error: float
    n_characters: int
    n_bytes: int
    n_unknown: int
    """tokens that stand for what the vocabulary lacks"""

    @property
    def bits_per_character(self) -> float:
        """The same in bits."""
        return self.nats_per_character / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """Per UTF-8 byte: comparable between all models of text."""
        return self.bits_per_character * self.n_characters / self.n_bytes

    def __str__(self) -> str:
        unknown = f"; {self.n_unknown:,} tokens are unknown to its vocabulary" if self.n_unknown else ""
        return (
            f"{self.nats_per_character:.4f} +- {self.standard_error:.4f} nats per character = {self.bits_per_character:.4f} +- "
            f"{self.standard_error / math.log(2):.4f} bits per character, {self.bits_per_byte:.4f} bits per byte; "
            f"{self.n_characters:,} characters{unknown}"
        )


@dataclass(frozen=True)
class Trained:
    """One trial's model (of one replica) with its tokenizer."""

    trial_id: str
    model: Network
    tokenizer: Tokenizer

    def generate(self, prompt: str = "", n_tokens: int = 256, temperature: float = 0.8, seed: int = 0) -> str:
        """Continue a prompt, up to `n_tokens` tokens or the end of the document; temperature 0 takes the likeliest token each time.

        Raises:
            ValueError: the vocabulary lacks something of the prompt.
        """
        ids = self.tokenizer.encode(prompt)
        if self.tokenizer.unknown_id in ids:
            strange = "".join(sorted({c for c in prompt if self.tokenizer.unknown_id in self.tokenizer.encode(c)}))
            raise ValueError(f"the model's vocabulary lacks {strange!r}, which the prompt holds; leave it out")
        start = [self.tokenizer.end_id or 0] if not ids else []  # a document begins after the end of another
        forbidden = () if self.tokenizer.unknown_id is None else (self.tokenizer.unknown_id,)
        prompts = torch.tensor([[start + ids]], device=self.model.flat.device)
        made = generate(self.model, prompts, n_tokens, torch.tensor([temperature]), seed, forbidden)[0, 0].tolist()
        return self.tokenizer.decode(made).partition(END_OF_TEXT)[0]

    def score(self, text: str) -> Score:
        """Loss of a text, each token seen with at least half a context before it where there is one.

        Raises:
            ValueError: the text has no two tokens.
        """
        ids = self.tokenizer.encode(text)
        start = [] if self.tokenizer.end_id is None else [self.tokenizer.end_id]  # then the first token is predicted, too
        losses = token_losses(self.model, np.array(start + ids))
        if len(losses) < 2:
            raise ValueError("the text is too short to score; give two characters or more")
        scored, block = ids[len(ids) - len(losses) :], self.model.config.block_size
        starts = range(0, len(scored), block)
        nats = np.add.reduceat(losses, starts)
        lengths = np.array([len(self.tokenizer.decode(scored[at : at + block], marks=False)) for at in starts], float)
        per_character = nats.sum() / lengths.sum()
        # A ratio of sums over blocks; its error by the delta method.
        off = nats - per_character * lengths
        error = math.sqrt((off**2).sum() * len(off) / (len(off) - 1)) / lengths.sum() if len(off) > 1 else math.nan
        unknown = sum(token == self.tokenizer.unknown_id for token in ids)
        return Score(float(per_character), error, int(lengths.sum()), self.tokenizer.count_bytes(scored), unknown)

    def export(self, folder: str | Path, to: str = "gpt2") -> Path:
        """Write a folder that `transformers` loads as this very model: config.json, model.safetensors, tokenizer.json.

        Raises:
            ValueError: there is no such format.
        """
        if to != "gpt2":
            raise ValueError(f"to={to!r} is no format to export to; choose gpt2")
        if not isinstance(self.model, Transformer):
            raise ValueError(f"trial {self.trial_id} is a model of your own, which has no form of GPT-2; export built-in models")
        place = expanded(folder, "folder")
        place.mkdir(parents=True, exist_ok=True)
        save_file(gpt2_tensors(self.model), place / "model.safetensors", {"format": "pt"})
        (place / "config.json").write_text(json.dumps(_gpt2_config(self.model, self.tokenizer.end_id), indent=1), encoding="utf-8")
        self.tokenizer.library.save(str(place / "tokenizer.json"))
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT, "unk_token": UNKNOWN}
        (place / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
        return place


def load(results: str | Path, trial: str = "best", device: str = "cpu", module: str = "") -> Trained:
    """A trained model of a results folder, or of one weights file.

    Args:
        trial: the beginning of its id; "best" is the one with the lowest validation loss.
        module: FILE:CLASS, where it is a model of your own.

    Raises:
        ValueError: it is not there, damaged, or was kept without its tokenizer.
    """
    path = weights.find(expanded(results, "RESULTS"), trial)
    model, facts = weights.read(path, device, module)
    if "tokenizer" not in facts:
        raise ValueError(f"{path} was kept without its tokenizer (arrays of token ids have none); train that trial again on a text")
    return Trained(facts["trial_id"], model, Tokenizer.load(facts["tokenizer"]))


@torch.inference_mode()
def token_losses(model: Network, ids: np.ndarray) -> np.ndarray:
    """Loss in nats of each token of a text but its first, (n - 1,).

    Windows of block_size overlap by half; a window's first half counts only at the beginning of the text.
    """
    T, end = model.config.block_size, len(ids) - 1
    overlap, step = T // 2, max(1, T // 2)
    n_windows = len(range(0, max(1, end - overlap), step))
    padded = np.zeros((n_windows - 1) * step + T + 1, dtype=np.int64)  # causal: what pads the end is never seen
    padded[: len(ids)] = ids
    windows = torch.from_numpy(np.lib.stride_tricks.sliding_window_view(padded, T + 1)[::step].copy()).split(max(1, BATCH_TOKENS // T))
    parts = (part[None].to(model.flat.device) for part in windows)
    found = torch.cat([model.token_losses(part[..., :-1].contiguous(), part[..., 1:].contiguous())[0] for part in parts])  # (n_windows, T)
    losses = torch.cat([found[0, :overlap], found[:-1, overlap : overlap + step].flatten(), found[-1, overlap:]])
    return losses[: max(0, end)].double().cpu().numpy()


# ---- GPT-2's form ----


def gpt2_tensors(model: Transformer) -> dict[str, torch.Tensor]:
    """The weights under the names and in the layout of `transformers`' GPT2LMHeadModel: linear layers as (in, out), biases of zero.

    What muP and CompleteP change in the forward pass goes into the weights: attention's scale into the queries, a branch's share into its
    last matrix, the head's factor into the last norm.
    """
    config = model.config
    own = {name: tensor.detach().float().cpu() for name, tensor in model.tensors(0).items()}
    found = {"wte.weight": own["wte"], "wpe.weight": own["wpe"], "ln_f.weight": own["norm_f"] / config.width_ratio}
    for layer in range(config.n_layer):
        qkv = own[f"qkv_{layer}"].clone()
        qkv[: config.n_embd] *= config.attention_scale * math.sqrt(config.head_dim)
        proj, down = (own[f"{name}_{layer}"] / config.depth_ratio for name in ("proj", "down"))
        linear = {"attn.c_attn": qkv, "attn.c_proj": proj, "mlp.c_fc": own[f"up_{layer}"], "mlp.c_proj": down}
        found |= {f"h.{layer}.{name}.weight": weight.T for name, weight in linear.items()}
        found |= {f"h.{layer}.ln_{i}.weight": own[f"norm{i}_{layer}"] for i in (1, 2)}
    biases = {name.replace(".weight", ".bias"): torch.zeros(weight.shape[-1]) for name, weight in found.items() if name[0] != "w"}
    return {f"transformer.{name}": tensor.contiguous() for name, tensor in (found | biases).items()}


def _gpt2_config(model: Transformer, end_id: int | None) -> dict[str, object]:
    config = model.config
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": config.d_ff,
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        **dict.fromkeys(("bos_token_id", "eos_token_id"), end_id),
    }
