"""Draws that depend on (seed, request, position) alone: the same tokens in any batch, on any device."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spec2seq.config import check_range

ACCEPT, REPLACE, DRAFT = range(3)  # independent streams at one position


@dataclass(frozen=True)
class Sampling:
    """Temperature, then top-k, top-p, min-p and typical-p, as Transformers orders them. None leaves one to the model's
    generation config (see `completed`), and without one there it is off; 1, 0, 1, 0 and 1 switch them off."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    min_p: float | None = None
    typical_p: float | None = None

    def __post_init__(self):
        check_range("temperature", self.temperature, low=1e-6)
        check_range("top_k", self.top_k, low=0)
        check_range("seed", self.seed, low=0, high=2**40)
        for name in ("top_p", "typical_p"):
            check_range(name, getattr(self, name), low=1e-6, high=1.0)
        check_range("min_p", self.min_p, low=0.0, high=1.0)

    def completed(self, settings: Mapping[str, Any]) -> "Sampling":
        """This, with what is None taken from a generation config."""
        names = ("temperature", "top_k", "top_p", "min_p", "typical_p")
        return replace(self, **{name: settings.get(name) for name in names if getattr(self, name) is None})

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits `[..., vocabulary]` → the filtered distribution, float32 or wider."""
        return self.filtered(logits).softmax(-1)

    def filtered(self, logits: Tensor, fewest: int = 1) -> Tensor:
        """Logits `[..., vocabulary]` over the temperature, -infinity for what is filtered out; every filter leaves at
        least `fewest` tokens. float32 or wider."""
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        if self.temperature not in (None, 1.0):
            logits = logits / self.temperature
        if self.top_k and self.top_k < logits.shape[-1]:
            worst = logits.topk(max(self.top_k, fewest), dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < worst, -torch.inf)
        if self.top_p not in (None, 1.0):
            logits = _likeliest_mass(logits, self.top_p, fewest)
        if self.min_p:
            p = logits.softmax(-1)
            unlikely = p < self.min_p * p.amax(-1, keepdim=True)
            logits = logits.masked_fill(unlikely.scatter(-1, p.topk(fewest).indices, False), -torch.inf)
        if self.typical_p not in (None, 1.0):
            logits = _typical_mass(logits, self.typical_p, fewest)
        return logits


def _likeliest_mass(logits: Tensor, most: float, fewest: int) -> Tensor:
    """The fewest likeliest tokens that make up the mass (Holtzman et al. 2020, section 3.1); the rest -infinity."""
    ordered, order = logits.sort(dim=-1, descending=True)
    mass = ordered.softmax(-1)
    beyond = mass.cumsum(-1) - mass >= most
    beyond[..., :fewest] = False
    return logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)


def _typical_mass(logits: Tensor, most: float, fewest: int) -> Tensor:
    """The tokens whose surprise is nearest to the entropy, up to the mass (Meister et al. 2023, section 4)."""
    log_p = logits.log_softmax(-1)
    entropy = -(log_p * log_p.exp()).nansum(-1, keepdim=True)
    distance, order = (log_p + entropy).abs().sort(dim=-1)
    mass = logits.gather(-1, order).softmax(-1).cumsum(-1)
    last = (mass < most).sum(-1, keepdim=True).clamp(fewest - 1, logits.shape[-1] - 1)
    return logits.masked_fill((log_p + entropy).abs() > distance.gather(-1, last), -torch.inf)


def seed_of(sampling: Sampling | None, number: int) -> int:
    """The seed of source `number`, wherever in a batch it comes."""
    return (sampling.seed if sampling else 0) * 1_000_003 + number


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
