"""A model of the user's own: a class in a Python file, found, counted and taken along.

A module is named `FILE:CLASS@HASH`; the hash is that of the file's text, so that a changed file is another model. The class is built from a
`ModelConfig` and maps token ids (B, T) to logits (B, T, V). Texts that were read are kept and can be handed to other processes.

    module = resolve("my_models.py:Llama"); model = load(module)(config); count(config).total
"""

import hashlib
import sys
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any

from models.home import expanded

texts: dict[str, str] = {}
"""Text of each file by its hash."""
DOUBLED = ("vocab_size", "block_size", "n_layer")
EXAMPLE = "for example --model.module my_models.py:Llama"


@dataclass(frozen=True)
class Counts:
    """Parameters, and what one sequence of a whole context costs."""

    total: int
    embedding: int
    """what grows with the vocabulary: token embedding, and a head of its own"""
    position: int
    """what grows with the context"""
    blocks: int
    """what grows with the depth"""
    forward_flops: int
    saved_bytes: int
    """activations that the forward pass keeps for the backward one"""


def resolve(module: str) -> str:
    """`FILE:CLASS`, or one with a hash, as `FILE:CLASS@HASH`.

    Raises:
        ValueError: no such form, no such file, or the file's text is not that of the hash.
    """
    name, _, digest = module.partition("@")
    file, _, kind = name.rpartition(":")
    if not file or not kind.isidentifier():
        raise ValueError(f"model.module={module} is not FILE:CLASS; {EXAMPLE}")
    if digest in texts:
        return module
    try:
        text = expanded(file, "model.module").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", "") or "it is no UTF-8 text"
        raise ValueError(f"the file of model.module={name} cannot be read ({why}); give a Python file and its class, {EXAMPLE}") from None
    found = hashlib.sha256(text.encode()).hexdigest()[:16]
    if digest not in ("", found):
        raise ValueError(f"{file} has changed since {kind} was trained; bring the file back, or train that trial again")
    texts[found] = text
    return f"{name}@{found}"


def without_folder(module: str) -> str:
    """`my_models.py:Llama@0123456789abcdef`: what a table says of a module."""
    return module.replace("\\", "/").rpartition("/")[2]


def identity(module: str) -> str:
    """`Llama@0123456789abcdef`: what makes it this model, wherever its file lies."""
    return module.rpartition(":")[2]


@cache
def load(module: str) -> Any:
    """The class, from the text of its hash.

    Raises:
        ValueError: the text cannot be had or run, or has no such class.
    """
    name, _, digest = resolve(module).partition("@")
    file, _, kind = name.rpartition(":")
    space = sys.modules[f"own_model_{digest}"] = ModuleType(f"own_model_{digest}")
    try:
        exec(compile(texts[digest], file, "exec"), space.__dict__)
    except Exception as error:
        raise ValueError(f"{file} cannot be imported ({said(error)}); it may import what is installed, no other file of yours") from error
    if not isinstance(found := getattr(space, kind, None), type):
        classes = [n for n, value in vars(space).items() if isinstance(value, type) and value.__module__ == space.__name__]
        raise ValueError(f"{file} has no class {kind}; it has {', '.join(classes) or 'none'}")
    return found


@cache
def count(config: Any) -> Counts:
    """Counts of a model of one's own (a `ModelConfig`), by torch on its meta device: nothing is allocated and nothing computed.

    What belongs to vocabulary, context and depth is what each adds when it doubles.

    Raises:
        ValueError: the class cannot be built or run for this shape, or its logits have another shape.
    """
    import torch  # here, as the driver of a study of built-in models never loads it
    from torch.autograd.graph import saved_tensors_hooks
    from torch.utils.flop_counter import FlopCounterMode

    def parameters(**change: int) -> int:
        return sum(p.numel() for p in build(replace(config, **change)).parameters())

    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    with torch.device("meta"):
        model, total = build(config), parameters()
        tokens = torch.zeros(1, config.block_size, dtype=torch.int64)
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        with FlopCounterMode(display=False) as flops, saved_tensors_hooks(keep, lambda tensor: tensor):
            logits_of(model, config, tokens)
        vocabulary, context, depth = (parameters(**{name: 2 * getattr(config, name)}) - total for name in DOUBLED)
    kept = sum(storage.nbytes() for key, storage in saved.items() if key not in own)
    return Counts(total, vocabulary, context, depth, flops.get_total_flops(), kept)


def build(config: Any) -> Any:
    """The user's model.

    Raises:
        ValueError: its class raised, or is no torch module.
    """
    kind = load(config.module)
    try:
        model = kind(config)
        list(model.parameters())
    except Exception as error:
        raise ValueError(f"{_named(config)} cannot be built ({said(error)}); mend it, or choose another shape") from error
    return model


def logits_of(model: Any, config: Any, tokens: Any) -> Any:
    """The model's logits, (B, T, V).

    Raises:
        ValueError: it raised, or they have another shape.
    """
    try:
        logits = model(tokens)
    except Exception as error:
        raise ValueError(f"forward(tokens) of {_named(config)} raised ({said(error)}); mend it") from error
    shape, right = tuple(getattr(logits, "shape", ())), (*tokens.shape, config.vocab_size)
    if shape != right:
        given = f"logits of shape {shape}" if shape else f"a {type(logits).__name__}"
        raise ValueError(f"forward(tokens) of {_named(config)} returned {given}; return logits of shape (B, T, vocab_size) = {right}")
    return logits


def said(error: Exception) -> str:
    """An error in a few words."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _named(config: Any) -> str:
    return (
        f"{without_folder(config.module).partition('@')[0]} with n_layer={config.n_layer}, n_embd={config.n_embd}, n_head={config.n_head}"
    )
