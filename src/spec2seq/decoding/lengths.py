"""Length rules: how far to draft. k is a host integer, one for a whole pass; shorter rows are masked."""

import math
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from spec2seq.config import check_range, check_whole
from spec2seq.decoding.costs import SOURCE, Costs


class Chooser(Protocol):
    """The running state of a length rule."""

    def choose(self) -> int:
        """k for the next pass; 0 drafts nothing."""
        ...

    def more(self, most: int) -> int:
        """How many of `most` passes after the next one may have its k without being chosen for."""
        ...

    def again(self) -> None:
        """A pass has had the k of the one before, as `more` allows: rows may end before all of those have run."""
        ...

    def observe(self, asked: int, accepted: int) -> None:
        """Learn from one row's verdict: `accepted` of the `asked` places were filled and stood. A place that
        the drafter left empty costs what a rejected one costs, so it counts as one."""
        ...

    def filled(self, asked: int, drafted: float) -> None:
        """Learn how many of the `asked` tokens were drafted and fed to the verifier, a row in the mean."""
        ...

    def took(self, k: int, drafted: float, seconds: float | None, passed: float) -> None:
        """Learn what an iteration took for which k was chosen, with most slots in use: so many of the k were drafted
        and fed to the verifier, a row in the mean. `seconds` are those that another one would take as well, None if
        they are not known; `passed` are all, of reading sources and of making a graph among them."""
        ...


class LengthRule(Protocol):
    """`cap` is the longest draft; `confidence` ends a draft where the drafter's top probability is below it. `costs`
    measures what the engine's iterations take, for a rule that wants to know."""

    cap: int
    confidence: float | None

    def chooser(self, costs: Callable[[], Costs]) -> Chooser: ...


@dataclass
class _Constant:
    k: int

    def choose(self) -> int:
        return self.k

    def more(self, most: int) -> int:
        return most

    def again(self) -> None:
        pass

    def observe(self, asked: int, accepted: int) -> None:
        pass

    def filled(self, asked: int, drafted: float) -> None:
        pass

    def took(self, k: int, drafted: float, seconds: float | None, passed: float) -> None:
        pass


@dataclass(frozen=True)
class FixedLength:
    """Always `cap` tokens."""

    cap: int = 5

    confidence = None

    def __post_init__(self):
        check_whole("draft length", self.cap, low=0)

    def chooser(self, costs: Callable[[], Costs]) -> Chooser:
        return _Constant(self.cap)


@dataclass(frozen=True)
class ConfidenceLength:
    """Draft until the drafter's top probability falls below `confidence` (BiLD's fallback; Transformers'
    `assistant_confidence_threshold`), at most `cap` tokens. The unsure token is left to the verifier."""

    confidence: float | None = 0.4
    cap: int = 10

    def __post_init__(self):
        check_range("confidence threshold", self.confidence, low=0.0, high=1.0)
        check_whole("draft cap", self.cap, low=1)

    def chooser(self, costs: Callable[[], Costs]) -> Chooser:
        return _Constant(self.cap)


@dataclass(frozen=True)
class AdaptiveLength:
    """The k with the most tokens per second, from the acceptance so far and the measured seconds of an iteration; 0
    where speculation does not pay, until it promises a twentieth more. Another one now and then, 0 among them, shows
    whether that has changed."""

    cap: int = 16
    confidence: float | None = None

    def __post_init__(self):
        check_whole("draft cap", self.cap, low=1)
        check_range("confidence threshold", self.confidence, low=0.0, high=1.0)

    def chooser(self, costs: Callable[[], Costs]) -> Chooser:
        return _Adaptive(self.cap, costs())


class _Adaptive:
    """Estimates the chance that draft position j stands if all before it stood, with decaying counts, and how much of
    what is asked for is drafted. What an iteration takes was measured on made-up rows; what those of these rows take
    beside it, with drafts and without, says how much more a draft costs than was measured. For that it looks now and
    then at what it does not do: a few iterations without drafts, or with some where they are switched off."""

    DECAY = 0.995
    FILLS = 0.98  # decay of the share that is drafted
    GAIN = 1.05  # what drafts must promise to be switched on: the drafter then has to read what came without it
    PROBE_EVERY = 32  # iterations
    PROBES, RAREST = 0.01, 1 << 16  # switched off, the share of the time for looks; after so many iterations one comes
    EARLY, STINT = 8, 4  # iterations until each of the first looks at what no drafts would take, and of a look
    LONGER = 4  # trials; the last of them is a look at no drafts, the others are of a longer draft
    LATELY, ENOUGH = 9, 3  # calls whose seconds are remembered, and with which they count
    PRIOR = (7.0, 10.0)  # stood, tried: optimistic, so that a new drafter gets its chance
    CHOICES = (1, 2, 3, 4, 5, 6, 8, 12, 16, 20, 25)

    def __init__(self, cap: int, costs: Costs):
        self.stood, self.tried, self.fill = [0.0] * cap, [0.0] * cap, 1.0
        self.choices, self.costs = [k for k in self.CHOICES if k < cap] + [cap], costs
        self.observed, self.since_probe, self.probe = 0, 0, min(2, cap)
        self.left, self.trials = 0, 0  # iterations of the present look yet to come, and trials so far
        self.before = self.k = self.probe  # the last two choices
        self.slower = {drafts: deque([], self.LATELY) for drafts in (False, True)}
        self.seldom = self._seldom(costs.iteration(self.probe, 1.0) + SOURCE * costs.reading)  # sources are unread
        self.best = 0
        self.best = self._best()
        self.patience = self.EARLY if self.best else self.seldom

    def choose(self) -> int:
        self.before, self.k = self.k, self._next()
        return self.k

    def _next(self) -> int:
        if self.left:
            self.left -= 1
            return self.k
        self.since_probe += 1
        if self.since_probe < self.patience:
            return self.best
        self.since_probe = 0
        if not self.best:
            self.left = self.STINT - 1
            return self.probe
        self.trials += 1
        if self.trials > self.ENOUGH and (self.trials - self.ENOUGH) % self.LONGER:
            return next((k for k in self.choices if k > self.best), self.best)
        self.left = self.STINT - 1
        self.patience = self.EARLY if self.trials < self.ENOUGH else self.PROBE_EVERY
        return 0

    def more(self, most: int) -> int:
        if self._catches_up:
            return 0
        if not self.since_probe:  # another k is on trial
            return min(most, self.left)
        return max(0, min(most, self.patience - 1 - self.since_probe))

    def again(self) -> None:
        if self.left:
            self.left -= 1
        else:
            self.since_probe += 1

    @property
    def _catches_up(self) -> bool:
        """Whether the drafter now reads what came without it, which says nothing of the iterations that follow."""
        return self.k > 0 and not self.before

    def observe(self, asked: int, accepted: int) -> None:
        for position in range(min(asked, accepted + 1, len(self.tried))):
            self.tried[position] = self.tried[position] * self.DECAY + 1
            self.stood[position] = self.stood[position] * self.DECAY + (position < accepted)
        self._learned(at_once=not self.best)

    def filled(self, asked: int, drafted: float) -> None:
        self.fill += (1 - self.FILLS) * (drafted / asked - self.fill)

    def took(self, k: int, drafted: float, seconds: float | None, passed: float) -> None:
        if self._catches_up:
            if not self.best and k == self.probe:
                self.patience = self.seldom = self._seldom(passed)
            return
        if seconds is None:
            return
        known = self.slower[k > 0]
        known.append(seconds / self.costs.iteration(k, drafted / max(k, 1)))
        self._learned(at_once=len(known) == self.ENOUGH)

    def _learned(self, at_once: bool) -> None:
        """Choose anew, though not after each of many observations."""
        self.observed += 1
        if self.observed % 8 and not at_once:
            return
        before, self.best = self.best, self._best()
        if not self.best:
            self.patience = self.seldom
        elif not before:
            self.patience = self.PROBE_EVERY

    def _seldom(self, first: float) -> int:
        """After how many iterations without drafts a look at them may come, the first of which takes so long."""
        plain, drafted = (
            self.costs.iteration(k, 1.0) * statistics.median(self.slower[k > 0] or self.slower[False] or [1.0])
            for k in (0, self.probe)
        )
        extra = first + (self.STINT - 1) * drafted - self.STINT * plain
        return min(max(self.PROBE_EVERY, math.ceil(extra / (self.PROBES * plain))), self.RAREST)

    def _excess(self) -> float:
        """How many times as much a draft costs beside no draft as was measured."""
        plain, drafted = self.slower.values()
        if min(len(plain), len(drafted)) < self.ENOUGH:
            return 1.0
        return statistics.median(drafted) / statistics.median(plain)

    def _best(self) -> int:
        plain, excess = self.costs.iteration(0, 1.0), self._excess()
        best, best_rate = 0, (1.0 if self.best else self.GAIN) / plain
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
            rate = expected / (excess * self.costs.iteration(k, self.fill) + expected * self.costs.reading)
            if rate > best_rate:
                best, best_rate = k, rate
        return best


LENGTH_RULES: dict[str, type] = {
    "fixed": FixedLength,
    "confidence": ConfidenceLength,
    "adaptive": AdaptiveLength,
}
