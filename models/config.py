"""The shape of a model and everything that can be counted from it: parameters, FLOPs.

Reads nothing, writes nothing, imports neither torch nor ray, so that a study can be expanded and quoted in milliseconds.

    ModelConfig(n_layer=6, n_head=8, n_embd=256, block_size=256, vocab_size=228).params_total   # 4_845_824
"""

import json
import math
from dataclasses import dataclass, fields, replace
from typing import Any

from models import module_file

BASE = ("base_width", "base_head_dim", "base_depth")
"""Fields of the shape at which a parametrization equals the standard one; 0 is the standard one itself."""
PARAMETRIZATIONS = ("standard", "mup", "completep")
Extra = tuple[tuple[str, float], ...]
COUNTS = ("params_total", "params_non_embedding", "params_embedding", "params_position", "params_blocks", "flops_per_token")


@dataclass(frozen=True)
class Shape:
    """What a study chooses: a nanoGPT-style decoder (pre-norm, learned positions, GELU, no bias, tied head, d_ff = 4 n_embd), or a module
    of the user's own.

    Counts are exact integers; those of a user's module are counted, see `models.module_file`.
    L = n_layer, d = n_embd, T = block_size; V = vocab_size comes with the data, see `ModelConfig`.
    """

    n_layer: int = 4
    """depth: number of transformer blocks"""
    n_embd: int = 64
    """width: channels of the residual stream"""
    n_head: int = 4
    """attention heads per block; divides n_embd"""
    block_size: int = 64
    """context length in tokens (characters)"""
    base_width: int = 0
    """0: standard parametrization; else muP (Yang et al. 2022), which equals the standard one at this width and base_head_dim"""
    base_head_dim: int = 0
    """muP: head width at which attention is scaled as usual; 0 scales it as usual at every head width"""
    base_depth: int = 0
    """CompleteP (Dey et al. 2025): muP that follows the depth, too, and equals the standard parametrization at this one; 0 does not"""
    module: str = ""
    """FILE:CLASS, a torch module of your own, built from ModelConfig, with forward(tokens) -> logits (B, T, vocab_size); empty: built in"""
    extra: Extra = ()
    """numbers of your own for it, each as --model.extra.NAME VALUE; dict(config.extra) there, extra.NAME in sweeps"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra", tuple(sorted((str(name), value) for name, value in self.extra)))  # lists where JSON held it
        if self.extra and not self.module:
            raise ValueError(f"model.extra.{self.extra[0][0]} belongs to a model of your own; give --model.module FILE:CLASS too")
        for name in [f.name for f in fields(self) if f.name not in ("module", "extra")]:
            value, least = getattr(self, name), 0 if name in BASE else 1
            if type(value) is not int or value < least:
                raise ValueError(f"{name}={value!r} is not a positive whole number; choose 1 or more")
        if self.n_embd % self.n_head:
            divisors = [h for h in range(1, min(self.n_embd, 4 * self.n_head) + 1) if self.n_embd % h == 0]
            nearest = min(divisors, key=lambda h: abs(h - self.n_head))
            raise ValueError(
                f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}; "
                f"choose n_head={nearest}, or a multiple of {self.n_head} for n_embd"
            )
        for name in BASE[1:]:
            if getattr(self, name) and not self.base_width:
                raise ValueError(f"{name}={getattr(self, name)} belongs to muP or CompleteP; give base_width too, or leave it 0")

    def under(self, parametrization: str) -> "Shape":
        """This shape with the base that a parametrization compares others with: itself, but for what it names; the standard one has none.

        Raises:
            ValueError: there is no such parametrization, or it does not go with the shape.
        """
        if parametrization not in PARAMETRIZATIONS:
            raise ValueError(f"parametrization={parametrization!r} is not one of {', '.join(PARAMETRIZATIONS)}")
        if self.base_width and parametrization == "standard":
            owned = f"model.base_width={self.base_width} belongs to muP"
            raise ValueError(f"{owned}; give --parametrization mup or completep too, or leave it out")
        if self.base_depth and parametrization != "completep":
            owned = f"model.base_depth={self.base_depth} belongs to CompleteP"
            raise ValueError(f"{owned}; give --parametrization completep too, or leave it out")
        if parametrization == "standard":
            return self
        if self.module:
            advice = "leave it out with model.module, and search learning rates instead"
            raise ValueError(f"parametrization={parametrization} knows only the built-in model; {advice}")
        width, depth = self.base_width or self.n_embd, self.base_depth or self.n_layer
        heads = self.base_head_dim or max(1, width // self.n_head)
        return replace(self, base_width=width, base_head_dim=heads, base_depth=depth if parametrization == "completep" else 0)

    @property
    def d_ff(self) -> int:
        """Width of the hidden layer of each MLP."""
        return 4 * self.n_embd

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def width_ratio(self) -> float:
        """m of muP (Yang et al. 2022, section B.1): width over base width; 1 under the standard parametrization."""
        return self.n_embd / self.base_width if self.base_width else 1.0

    @property
    def depth_ratio(self) -> float:
        """m_L of CompleteP (Dey et al. 2025, table 1): depth over base depth; 1 where depth is not followed."""
        return self.n_layer / self.base_depth if self.base_depth else 1.0

    @property
    def attention_scale(self) -> float:
        """Factor of q k^T: 1 / sqrt(D), or sqrt(base_head_dim) / D under muP (Yang et al. 2022, definition 4.1)."""
        usual = 1 / math.sqrt(self.head_dim)
        return usual * math.sqrt(self.base_head_dim / self.head_dim) if self.base_head_dim else usual

    @property
    def aspect(self) -> float:
        """Width over depth, the aspect ratio of Kaplan et al. 2020, section 3.1."""
        return self.n_embd / self.n_layer

    def _counts(self) -> module_file.Counts:
        """Of a user's module."""
        return module_file.count(self if isinstance(self, ModelConfig) else ModelConfig(**vars(self)))

    @property
    def params_position(self) -> int:
        """Learned position embedding T d."""
        return self._counts().position if self.module else self.block_size * self.n_embd

    @property
    def params_blocks(self) -> int:
        """All blocks without the final norm: L (12 d^2 + 2 d): attention 4 d^2, MLP 8 d^2, two norm scales."""
        return self._counts().blocks if self.module else self.n_layer * (12 * self.n_embd**2 + 2 * self.n_embd)

    @property
    def params_non_embedding(self) -> int:
        """Total less token and position embeddings (N of Kaplan et al. 2020)."""
        if self.module:
            counts = self._counts()
            return counts.total - counts.embedding - counts.position
        return self.params_blocks + self.n_embd


@dataclass(frozen=True)
class ModelConfig(Shape):
    """A shape together with the size of the data's vocabulary: everything that fixes the network. V = vocab_size."""

    vocab_size: int = 64
    """distinct tokens"""

    @property
    def params_embedding(self) -> int:
        """Token embedding V d, shared with the output head and counted once."""
        return self._counts().embedding if self.module else self.vocab_size * self.n_embd

    @property
    def params_total(self) -> int:
        """V d + T d + L (12 d^2 + 2 d) + d."""
        return self.params_embedding + self.params_position + self.params_non_embedding

    @property
    def forward_flops_per_token(self) -> int:
        """Matrix-multiply FLOPs of one forward pass, per token, as a hardware counter sees them.

        2 FLOPs per multiply-add: blocks 2 * 12 L d^2, attention scores and weighted values 2 * 2 L T d (the full T x T square,
        as Kaplan et al. 2020, table 1, and PaLM's appendix B count it; a causal kernel may skip half), head 2 V d.
        """
        if self.module:
            return round(self._counts().forward_flops / self.block_size)
        return 2 * (12 * self.n_layer * self.n_embd**2 + 2 * self.n_layer * self.block_size * self.n_embd + self.vocab_size * self.n_embd)

    @property
    def saved_bytes(self) -> int:
        """Activations in float32 that a user's module keeps of one sequence for the backward pass."""
        return self._counts().saved_bytes

    @property
    def flops_per_token(self) -> int:
        """Forward plus backward: the backward pass costs twice the forward one (Kaplan et al. 2020, section 2.1)."""
        return 3 * self.forward_flops_per_token

    def columns(self) -> dict[str, Any]:
        """Shape and counts as columns of the table `trials`."""
        own = {"module": module_file.without_folder(self.module) or None, "extra": json.dumps(dict(self.extra)) if self.extra else None}
        shape = {f.name: getattr(self, f.name) for f in fields(self)}
        return shape | own | {"d_ff": None if self.module else self.d_ff} | {name: getattr(self, name) for name in COUNTS}
