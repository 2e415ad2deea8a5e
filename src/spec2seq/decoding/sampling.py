"""Draws that depend on (seed, request, position) alone: the same tokens in any batch, on any device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from spec2seq.config import check_range

ACCEPT, REPLACE, DRAFT = range(3)  # independent streams at one position


@dataclass(frozen=True)
class Sampling:
    """Temperature, then top-k, then top-p, as Transformers orders them. None switches a filter off."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self):
        check_range("temperature", self.temperature, low=1e-6)
        check_range("top_k", self.top_k, low=1)
        check_range("seed", self.seed, low=0, high=2**40)
        check_range("top_p", self.top_p, low=1e-6, high=1.0)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits `[..., vocabulary]` → the filtered distribution, float32 or wider."""
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        if self.temperature != 1.0:
            logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            worst = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < worst, -torch.inf)
        if self.top_p is not None and self.top_p < 1.0:
            ordered, order = logits.sort(dim=-1, descending=True)
            mass = ordered.softmax(-1)
            beyond = mass.cumsum(-1) - mass >= self.top_p
            logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
        return logits.softmax(-1)


def uniform(seeds: Tensor, positions: Tensor, stream: int) -> Tensor:
    """Uniform draws in [0, 1), float64, one for each (seed, position), of one stream.

    seeds and positions broadcast together; the mixing function is splitmix64 (Steele et al. 2014).
    """
    state = _mix(_mix(seeds * 3 + stream) + positions)
    return ((state >> 11) & ((1 << 53) - 1)).double() / float(1 << 53)


def draw(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """Tokens `[...]` from distributions `[..., vocabulary]` (any positive total) by inverting their sums."""
    sums = probabilities.double().cumsum(-1)
    target = numbers[..., None] * sums[..., -1:]
    # Rounding can put the target at the very end: the last token with any mass is then the answer.
    last = (sums < sums[..., -1:]).sum(-1)
    return torch.minimum(torch.searchsorted(sums, target, right=True)[..., 0], last)


def _mix(x: Tensor) -> Tensor:
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
