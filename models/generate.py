"""Sampling text from a model, a batch of prompts and all replicas at once, with a key-value cache.

When the context is full the oldest half is dropped and the rest read anew: learned positions make a sliding cache impossible, and
half a context at a time costs one pass per T/2 characters instead of one per character.

    tokens = generate(model, prompts, n_tokens=200, temperature=torch.tensor([0.7, 1.0]), seed=0)   # (K, B, P) -> (K, B, 200)
"""

import torch
from torch import Tensor

from models.transformer import Cache, Network


@torch.inference_mode()
def generate(model: Network, prompts: Tensor, n_tokens: int, temperature: Tensor, seed: int = 0, forbidden: tuple[int, ...] = ()) -> Tensor:
    """Continue prompts of equal length.

    Args:
        prompts: (K, B, P) token ids, P >= 1.
        temperature: (B,) of each prompt; 0 takes the likeliest token.
        seed: of the noise, drawn on the CPU and shared by all replicas: the same luck for every model and device.
        forbidden: token ids never to produce.

    Returns:
        (K, B, n_tokens) new token ids, without the prompts.
    """
    K, B, P = prompts.shape
    T, V = model.config.block_size, model.config.vocab_size
    was_training = model.training
    model.eval()
    noise = torch.Generator().manual_seed(seed)
    text = prompts.new_empty(K, B, P + n_tokens)
    text[:, :, :P] = prompts
    start = max(0, P - T)  # first token of the present context
    cache: Cache | None = None
    scale = torch.where(temperature > 0, temperature, 1.0).to(prompts.device).view(1, B, 1)
    greedy = (temperature <= 0).to(prompts.device).view(1, B, 1)
    for end in range(P, P + n_tokens):
        if end - start > T:
            start, cache = end - max(1, T // 2), None
        if cache is None:
            cache, new = model.new_cache(B), text[:, :, start:end]
        else:
            new = text[:, :, end - 1 : end]
        logits = model(new, cache)
        last = logits[:, :, -1]  # (K, B, V)
        gumbel = -torch.log(-torch.log(torch.rand(B, V, generator=noise).clamp_(1e-20, 1 - 1e-7))).to(last.device)
        choice = last / scale + gumbel.masked_fill(greedy[0], 0.0)  # Gumbel-max: argmax(logits / t + Gumbel) samples softmax(logits / t)
        if forbidden:
            choice[:, :, list(forbidden)] = -torch.inf
        text[:, :, end] = choice.argmax(-1)
    model.train(was_training)
    return text[:, :, P:]
