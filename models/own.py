"""A model of the user's own as training, generation and weights files take one: like `models.transformer.Transformer`, of one replica.

model = OwnModel(ModelConfig(module=resolve("my_models.py:Llama"), vocab_size=64), seeds=[1]); logits = model(tokens)   # (1, B, T, V)
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models import module_file
from models.arithmetic import Precision
from models.config import ModelConfig
from models.transformer import Network


class OwnModel(Network):
    """The user's module, its parameters views of one flat buffer: matrices first (they take weight decay), then the others.

    `seeds` holds one: there torch's generator on the CPU begins while the module is built.
    """

    def __init__(self, config: ModelConfig, seeds: Sequence[int] = (0,), device: str = "cpu") -> None:
        super().__init__()
        self.config, self.replicas, self.dropout = config, 1, 0.0
        self.precision: Precision = "float32"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds[0])
            self.module: nn.Module = module_file.build(config).to(device)
        found = sorted((p for p in self.module.parameters() if p.requires_grad), key=lambda p: p.dim() < 2)
        sizes = [p.numel() for p in found]
        self.decayed = sum(p.numel() for p in found if p.dim() >= 2)
        self.flat = torch.cat([p.detach().flatten() for p in found]).float()[None]
        self.flat_grad = torch.zeros_like(self.flat)
        for p, weights, gradients in zip(found, self.flat[0].split(sizes), self.flat_grad[0].split(sizes), strict=True):
            p.data, p.grad = weights.view_as(p), gradients.view_as(p)

    def forward(self, tokens: Tensor, cache: None = None) -> Tensor:
        """Logits (1, B, T, V) in float32 for token ids (1, B, T); bf16 is torch's autocast."""
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return module_file.logits_of(self.module, self.config, tokens[0])[None].float()

    def tensors(self, replica: int = 0) -> dict[str, Tensor]:
        """Parameters and buffers by the module's own names, a tied one once."""
        return dict(self.module.named_parameters()) | self.state()
