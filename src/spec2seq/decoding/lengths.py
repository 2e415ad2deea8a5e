"""Length rules: how far to draft. k is a host integer, one for a whole pass; shorter rows are masked."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from spec2seq.config import check_range


class Chooser(Protocol):
    """The running state of a length rule."""

    def choose(self) -> int:
        """k for the next pass; 0 drafts nothing."""
        ...

    def observe(self, asked: int, accepted: int) -> None:
        """Learn from one row's verdict: `accepted` of the `asked` places were filled and stood. A place that
        the drafter left empty costs what a rejected one costs, so it counts as one."""
        ...

    def spent(self, k: int, seconds: float) -> None:
        """Learn that an iteration which asked for `k` took so long, everything included."""
        ...


class LengthRule(Protocol):
    """`cap` is the longest draft; `confidence` ends a draft where the drafter's top probability is below it."""

    cap: int
    confidence: float | None

    def chooser(self) -> Chooser: ...


@dataclass(frozen=True)
class _Constant:
    k: int

    def choose(self) -> int:
        return self.k

    def observe(self, asked: int, accepted: int) -> None:
        pass

    def spent(self, k: int, seconds: float) -> None:
        pass


@dataclass(frozen=True)
class FixedLength:
    """Always `cap` tokens."""

    cap: int = 5

    confidence = None

    def __post_init__(self):
        check_range("num_assistant_tokens", self.cap, low=0)

    def chooser(self) -> Chooser:
        return _Constant(self.cap)


@dataclass(frozen=True)
class ConfidenceLength:
    """Draft until the drafter's top probability falls below `confidence` (BiLD's fallback; Transformers'
    `assistant_confidence_threshold`), at most `cap` tokens. The unsure token is left to the verifier."""

    confidence: float | None = 0.4
    cap: int = 10

    def __post_init__(self):
        check_range("confidence threshold", self.confidence, low=0.0, high=1.0)
        check_range("draft cap", self.cap, low=1)

    def chooser(self) -> Chooser:
        return _Constant(self.cap)


@dataclass(frozen=True)
class AdaptiveLength:
    """The k with the most tokens per second, from the acceptance and the seconds of the iterations so far; 0 where
    speculation does not pay, with another k now and then to notice when it would."""

    cap: int = 16
    confidence: float | None = None

    def __post_init__(self):
        check_range("draft cap", self.cap, low=1)
        check_range("confidence threshold", self.confidence, low=0.0, high=1.0)

    def chooser(self) -> Chooser:
        return _Adaptive(self.cap)


class _Adaptive:
    """Estimates the chance that draft position j stands if all before it stood, with decaying counts, and the
    seconds of an iteration with k, by the middle one of the last few."""

    DECAY = 0.995
    PROBE_EVERY = 32  # iterations
    SAMPLES = 9
    PRIOR = (7.0, 10.0)  # stood, tried: optimistic, so that a new drafter gets its chance
    CHOICES = (1, 2, 3, 4, 5, 6, 8, 12, 16, 20, 25)
    FIRST = 4  # tried at the beginning, in turn with 0

    def __init__(self, cap: int):
        self.stood, self.tried = [0.0] * cap, [0.0] * cap
        self.choices = [k for k in self.CHOICES if k < cap] + [cap]
        self.samples: dict[int, deque[float]] = {}
        self.trials = [min(self.FIRST, cap), 0] * 2
        self.best = self.trials[0]
        self.observed = self.since_probe = self.probes = 0

    def choose(self) -> int:
        if self.trials:
            return self.trials[0]
        self.since_probe += 1
        if self.since_probe < self.PROBE_EVERY:
            return self.best
        self.since_probe = 0
        self.probes += 1
        return self._probe()

    def observe(self, asked: int, accepted: int) -> None:
        for position in range(min(asked, accepted + 1, len(self.tried))):
            self.tried[position] = self.tried[position] * self.DECAY + 1
            self.stood[position] = self.stood[position] * self.DECAY + (position < accepted)
        self.observed += 1
        if self.observed % 8 == 0:
            self.best = self._best()

    def spent(self, k: int, seconds: float) -> None:
        self.samples.setdefault(k, deque(maxlen=self.SAMPLES)).append(seconds)
        if self.trials:
            if k == self.trials[0]:
                self.trials.pop(0)
            if not self.trials:
                self.best = self._best()
        elif k != self.best:
            self.best = self._best()

    def _probe(self) -> int:
        """In turn the next longer draft, none, and the next shorter one."""
        if not self.best:
            return min(2, self.choices[-1])
        around = [0, *self.choices, self.choices[-1]]
        place = around.index(self.best)
        return (around[place + 1], 0, around[place - 1])[self.probes % 3]

    def _best(self) -> int:
        seconds = self._seconds()
        if 0 not in self.samples:
            return self.best
        best, best_rate = 0, 1 / seconds(0)
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
            rate = expected / seconds(k)
            if rate > best_rate:
                best, best_rate = k, rate
        return best

    def _seconds(self) -> Callable[[int], float]:
        """Seconds by k: measured, or on the line through the two nearest that are; more tokens never take less."""
        points = []
        for k, samples in sorted(self.samples.items()):
            middle = sorted(samples)[(len(samples) - 1) // 2]
            points.append((k, max(middle, points[-1][1]) if points else middle))

        def seconds(k: int) -> float:
            if len(points) == 1:
                return points[0][1]
            after = next((i for i, (known, _) in enumerate(points) if known >= k), len(points) - 1)
            (low, fast), (high, slow) = points[max(after, 1) - 1], points[max(after, 1)]
            return fast + (slow - fast) * (k - low) / (high - low)

        return seconds


LENGTH_RULES: dict[str, type] = {
    "fixed": FixedLength,
    "confidence": ConfidenceLength,
    "adaptive": AdaptiveLength,
}
