"""Length rules: how far to draft. k is a host integer, one for a whole pass; shorter rows are masked."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from spec2seq.config import check_range


@dataclass(frozen=True)
class PassCosts:
    """Measured seconds: of a verifier pass over 1 + k tokens, and of drafting k tokens, at one batch size."""

    verify: Callable[[int], float]
    draft: Callable[[int], float]


class Chooser(Protocol):
    """The running state of a length rule."""

    def choose(self) -> int:
        """k for the next pass; 0 drafts nothing."""
        ...

    def observe(self, asked: int, accepted: int) -> None:
        """Learn from one row's verdict: `accepted` of the `asked` places were filled and stood. A place that
        the drafter left empty costs what a rejected one costs, so it counts as one."""
        ...


class LengthRule(Protocol):
    """`cap` is the longest draft; `confidence` ends a draft where the drafter's top probability is below it."""

    cap: int
    confidence: float | None
    needs_costs: bool

    def chooser(self, costs: PassCosts | None) -> Chooser: ...


@dataclass(frozen=True)
class _Constant:
    k: int

    def choose(self) -> int:
        return self.k

    def observe(self, asked: int, accepted: int) -> None:
        pass


@dataclass(frozen=True)
class FixedLength:
    """Always `cap` tokens."""

    cap: int = 5

    confidence = None
    needs_costs = False

    def __post_init__(self):
        check_range("num_assistant_tokens", self.cap, low=0)

    def chooser(self, costs: PassCosts | None) -> Chooser:
        return _Constant(self.cap)


@dataclass(frozen=True)
class ConfidenceLength:
    """Draft until the drafter's top probability falls below `confidence` (BiLD's fallback; Transformers'
    `assistant_confidence_threshold`), at most `cap` tokens. The unsure token is left to the verifier."""

    confidence: float | None = 0.4
    cap: int = 10

    needs_costs = False

    def __post_init__(self):
        check_range("confidence threshold", self.confidence, low=0.0, high=1.0)
        check_range("draft cap", self.cap, low=1)

    def chooser(self, costs: PassCosts | None) -> Chooser:
        return _Constant(self.cap)


@dataclass(frozen=True)
class AdaptiveLength:
    """The k with the most tokens per second, from measured acceptance and measured pass cost; 0 where
    speculation does not pay, with a short draft now and then to notice when it would."""

    cap: int = 16
    confidence: float | None = None

    needs_costs = True

    def __post_init__(self):
        check_range("draft cap", self.cap, low=1)
        check_range("confidence threshold", self.confidence, low=0.0, high=1.0)

    def chooser(self, costs: PassCosts | None) -> Chooser:
        if costs is None:
            raise ValueError("AdaptiveLength needs measured pass costs")
        return _Adaptive(self.cap, costs)


@dataclass
class _Adaptive:
    """Estimates the chance that draft position j stands if all before it stood, with decaying counts."""

    cap: int
    costs: PassCosts
    stood: list[float] = field(default_factory=list)
    tried: list[float] = field(default_factory=list)
    since_probe: int = 0

    DECAY = 0.995
    PROBE_EVERY = 32
    PRIOR = (7.0, 10.0)  # stood, tried: optimistic, so that a new drafter gets its chance
    CHOICES = (1, 2, 3, 4, 5, 6, 8, 12, 16, 20, 25)

    def __post_init__(self):
        self.stood = [0.0] * self.cap
        self.tried = [0.0] * self.cap
        self.choices = [k for k in self.CHOICES if k < self.cap] + [self.cap]
        self.draft_cost = {k: self.costs.draft(k) for k in self.choices}
        self.verify_cost = {k: self.costs.verify(k) for k in [0, *self.choices]}
        self.best = self._best()
        self.observed = 0

    def choose(self) -> int:
        if self.best:
            return self.best
        self.since_probe += 1
        if self.since_probe >= self.PROBE_EVERY:
            self.since_probe = 0
            return min(2, self.cap)
        return 0

    def observe(self, asked: int, accepted: int) -> None:
        for position in range(min(asked, accepted + 1, self.cap)):
            self.tried[position] = self.tried[position] * self.DECAY + 1
            self.stood[position] = self.stood[position] * self.DECAY + (position < accepted)
        self.observed += 1
        if self.observed % 8 == 0:
            self.best = self._best()

    def _best(self) -> int:
        best, best_rate = 0, 1 / self.verify_cost[0]
        expected, alive, position = 1.0, 1.0, 0
        stood, tried = self.PRIOR
        for k in self.choices:
            while position < k:
                # A position seldom reached borrows from the one before it.
                chance = (self.stood[position] + stood) / (self.tried[position] + tried)
                stood, tried = 10 * chance, 10.0
                alive *= chance
                expected += alive
                position += 1
            rate = expected / (self.verify_cost[k] + self.draft_cost[k])
            if rate > best_rate:
                best, best_rate = k, rate
        return best


LENGTH_RULES: dict[str, type] = {
    "fixed": FixedLength,
    "confidence": ConfidenceLength,
    "adaptive": AdaptiveLength,
}
