"""Logits processors: what they do to the logits of drafted places, and as rules for the compiled executor."""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from spec2seq.errors import Spec2SeqError


@dataclass(frozen=True)
class Prefix:
    """What stands before each scored place: place j of a row comes after `lengths + j` tokens of `tokens`
    `[rows, capacity]` (decoder start and drafts included). `limits` `[rows]` is the most tokens a row may have, and
    `given` `[rows]` how many it began with, the decoder start among them."""

    tokens: Tensor
    lengths: Tensor
    limits: Tensor
    given: Tensor

    def before(self, width: int) -> Tensor:
        """How many tokens stand before each place, the decoder start included: `[rows, width]`."""
        return self.lengths[:, None] + torch.arange(width, device=self.lengths.device)

    def written(self, width: int) -> Tensor:
        """How many of these the row has written itself: `[rows, width]`."""
        return self.before(width) - self.given[:, None]

    def holds(self, width: int) -> Tensor:
        """Which of `tokens` stand before each place: `[rows, width, capacity]`."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.before(width)[:, :, None]


@dataclass(frozen=True)
class Where:
    """The places at which a number is at least `low` and below `high`: the tokens `before` a place, the decoder start
    included; those that the row has `written`; those `behind` the first one of its choice, if what follows the start
    is forced; or those `left` of its limit."""

    counted: str
    low: int
    high: int

    def holds(self, prefix: Prefix, width: int) -> Tensor:
        """`[rows, width]`."""
        match self.counted:
            case "before":
                count = prefix.before(width)
            case "written":
                count = prefix.written(width)
            case "behind":
                count = prefix.before(width) - prefix.given[:, None].clamp(min=2)
            case "left":
                count = prefix.limits[:, None] - prefix.before(width)
        return (count >= self.low) & (count < self.high)


class Rule(NamedTuple):
    """A processor for the compiled executor, see kernels/rules.h: its kind there, sequences of token ids all of one
    length, where it holds (None: everywhere) and a number."""

    kind: str
    tokens: tuple[tuple[int, ...], ...] = ()
    where: Where | None = None
    value: float = 0.0


class Processor(Protocol):
    """Equal ones do the same, and can be hashed. A GPU's graph may be made of a call, so nothing in it waits for the
    device."""

    @property
    def rules(self) -> tuple[Rule, ...] | None:
        """The same for the compiled executor; None: it does not know it."""

    def __call__(self, logits: Tensor, prefix: Prefix) -> Tensor:
        """Logits `[rows, width, vocabulary]` as they are to be."""


def processed(logits: Tensor, prefix: Prefix, processors: Iterable[Processor]) -> Tensor:
    """Logits `[rows, width, vocabulary]` as all of them want them, in their order."""
    wide = torch.promote_types(logits.dtype, torch.float32)  # as in Transformers: rounded to 16 bits, much would tie
    for process in processors:
        logits = process(logits.to(wide), prefix)
    return logits


@dataclass(frozen=True)
class _OfTokens:
    tokens: tuple[int, ...]

    @functools.cached_property
    def _on(self) -> Callable[[torch.device], Tensor]:
        """The tokens on a device, copied there once: a copy to a GPU for every pass would stall it."""
        return functools.cache(lambda device: torch.tensor(self.tokens, device=device))


@dataclass(frozen=True)
class Suppress(_OfTokens):
    """Tokens that may not come at some places; None: anywhere."""

    where: Where | None = None

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (Rule("suppress", (self.tokens,), self.where),)

    def __call__(self, logits: Tensor, prefix: Prefix) -> Tensor:
        banned = logits.index_fill(2, self._on(logits.device), -torch.inf)
        if self.where is None:
            return banned
        return torch.where(self.where.holds(prefix, logits.shape[1])[:, :, None], banned, logits)


@dataclass(frozen=True)
class Force(_OfTokens):
    """One of the tokens must come at some places."""

    where: Where

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (Rule("force", (self.tokens,), self.where),)

    def __call__(self, logits: Tensor, prefix: Prefix) -> Tensor:
        forced = torch.full_like(logits[:1, :1], -torch.inf).index_fill(2, self._on(logits.device), 0)
        return torch.where(self.where.holds(prefix, logits.shape[1])[:, :, None], forced, logits)


@dataclass(frozen=True)
class PenalizeRepetition:
    """Every token that stands before a place has its logit divided by `penalty`, or multiplied if it is negative:
    Transformers' reading of CTRL (Keskar et al. 2019, section 4.1). Raises Spec2SeqError unless it is positive."""

    penalty: float

    def __post_init__(self) -> None:
        if not self.penalty > 0:
            raise Spec2SeqError(f"generation setting repetition_penalty={self.penalty!r}; allowed: above 0")

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (Rule("penalize", value=self.penalty),)

    def __call__(self, logits: Tensor, prefix: Prefix) -> Tensor:
        tokens = prefix.tokens[:, None]
        # The start token stands before every place, so it can stand in for what does not.
        seen = torch.where(prefix.holds(logits.shape[1]), tokens, tokens[:, :, :1])
        score = logits.gather(2, seen)
        return logits.scatter(2, seen, torch.where(score < 0, score * self.penalty, score / self.penalty))


@dataclass(frozen=True)
class NoRepeatNgrams:
    """No sequence of `size` tokens may come twice (Paulus et al. 2018, section 2.5)."""

    size: int

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (Rule("no_repeat", value=self.size),)

    def __call__(self, logits: Tensor, prefix: Prefix) -> Tensor:
        tokens, before, size = prefix.tokens[:, None], prefix.before(logits.shape[1]), self.size
        # Each earlier n-gram, by its last token; banned where its other tokens are the last before the place.
        banned = prefix.holds(logits.shape[1])[:, :, size - 1 :]
        ngrams = banned.shape[2]
        for back in range(1, size):
            latest = prefix.tokens.gather(1, (before - back).clamp(min=0))  # below 0 there is no n-gram to ban
            start = size - 1 - back
            banned &= tokens[:, :, start : start + ngrams] == latest[:, :, None]
        ceiling = logits.new_full(banned.shape, torch.inf).masked_fill_(banned, -torch.inf)
        # The smallest ceiling counts: the same token may end n-grams that are banned and others that are not.
        return logits.scatter_reduce(2, tokens[:, :, size - 1 :].expand(banned.shape), ceiling, "amin")


@dataclass(frozen=True)
class BiasSequences:
    """The last token of each sequence gets its bias wherever the others stand right before."""

    biases: tuple[tuple[tuple[int, ...], float], ...]

    @functools.cached_property
    def sizes(self) -> dict[int, list[tuple[tuple[int, ...], float]]]:
        """The sequences and their biases by length."""
        found: dict[int, list[tuple[tuple[int, ...], float]]] = {}
        for tokens, bias in self.biases:
            found.setdefault(len(tokens), []).append((tokens, bias))
        return found

    @property
    def rules(self) -> tuple[Rule, ...] | None:
        if any(bias != -math.inf for _, bias in self.biases):
            return None  # a sum whose order shows in its last bit
        return tuple(Rule("ban_sequences", tuple(tokens for tokens, _ in group)) for group in self.sizes.values())

    @functools.cached_property
    def _on(self) -> Callable[[torch.device], list[tuple[Tensor, Tensor]]]:
        """For each size the sequences `[n, size]` and their biases `[n]`."""
        columns = [zip(*group, strict=True) for group in self.sizes.values()]
        columns = [tuple(map(list, pair)) for pair in columns]
        return functools.cache(
            lambda device: [tuple(torch.tensor(column, device=device) for column in pair) for pair in columns]
        )

    def __call__(self, logits: Tensor, prefix: Prefix) -> Tensor:
        before = prefix.before(logits.shape[1])
        total = torch.zeros_like(logits)
        for sequences, values in self._on(logits.device):
            size = sequences.shape[1]
            stands = (before >= size - 1)[:, :, None].expand(-1, -1, len(sequences))  # [rows, width, n]
            for back in range(1, size):
                latest = prefix.tokens.gather(1, (before - back).clamp(min=0))
                stands = stands & (latest[:, :, None] == sequences[:, -1 - back])
            total.index_add_(2, sequences[:, -1], torch.where(stands, values, 0.0).to(total.dtype))
        return logits + total


@dataclass(frozen=True)
class FavourTheEnd(_OfTokens):
    """From the place `start` on an end token's logit rises by its size times factor ** (steps since) - 1."""

    start: int
    factor: float

    rules = None

    def __call__(self, logits: Tensor, prefix: Prefix) -> Tensor:
        ends = self._on(logits.device)
        steps = (prefix.written(logits.shape[1]) - self.start).clamp(min=0)[:, :, None]
        score = logits.index_select(2, ends)
        rise = score.abs() * (torch.pow(float(self.factor), steps.double()) - 1).to(score.dtype)
        return logits.index_add(2, ends, rise.masked_fill(~score.isfinite(), 0.0))


@dataclass(frozen=True)
class RemoveInvalid:
    """What is no number becomes 0, and infinity the largest number; what is banned stays so."""

    rules = None

    def __call__(self, logits: Tensor, prefix: Prefix) -> Tensor:
        return logits.nan_to_num(0.0, neginf=-torch.inf)


@dataclass(frozen=True)
class Renormalize:
    """Logits become log-probabilities."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (Rule("renormalize"),)

    def __call__(self, logits: Tensor, prefix: Prefix) -> Tensor:
        return logits.log_softmax(-1)
