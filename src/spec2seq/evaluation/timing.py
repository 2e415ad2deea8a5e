"""Seconds one can compare: callables take turns, round by round, after a warm-up; ratios are taken within a round."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spec2seq.config import check_range
from spec2seq.errors import UsageError


@dataclass(frozen=True)
class Spread:
    """The median of some values with their interquartile range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Raises ValueError if there are no values."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def as_dict(self) -> dict[str, float]:
        return {"median": self.median, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Timings:
    """Seconds by name, one for each round; place r of every list was measured in the same round. A list that is
    shorter has the first rounds."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def least(self, name: str) -> float:
        return min(self.seconds[name])

    def speedup(self, name: str, baseline: str) -> Spread:
        """How many times as fast as `baseline` (2: half the seconds): the median of the ratios of those rounds that
        both took part in."""
        pairs = zip(self.seconds[name], self.seconds[baseline], strict=False)
        return Spread.of([theirs / mine for mine, theirs in pairs])


def interleave(
    callables: Mapping[str, Callable[[], Any]],
    rounds: int,
    warmup: int = 1,
    *,
    fewer: Mapping[str, int] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    after: Callable[[], Any] | None = None,
) -> Timings:
    """Time every callable once a round, so that whatever slows the machine down slows all of them alike.

    Args:
        callables: what to time, by name.
        rounds: measured rounds.
        warmup: rounds before them that are not measured.
        fewer: names that take part in only so many of the rounds, the first ones.
        clock: seconds; a test passes its own.
        after: called after each call, outside of its time (a progress bar).
    """
    check_range("rounds", rounds, low=1)
    check_range("warmup", warmup, low=0)
    if not callables:
        raise UsageError("nothing to time: no callables")
    seconds: dict[str, list[float]] = {name: [] for name in callables}
    for number in range(-warmup, rounds):
        taking_part = [name for name in callables if number < (fewer or {}).get(name, rounds)]
        for name in _order(taking_part, number):
            started = clock()
            callables[name]()
            took = clock() - started
            if number >= 0:
                seconds[name].append(took)
            if after is not None:
                after()
    return Timings(seconds)


def _order(names: list[str], number: int) -> list[str]:
    """Every round begins elsewhere and every second one runs backwards, so that none always follows the same one."""
    start = number % max(1, len(names))
    turned = names[start:] + names[:start]
    return turned if number % 2 == 0 else turned[::-1]


def set_threads(threads: int | None) -> int:
    """Set how many threads one operator may use, once and before anything is timed; returns the number in force.
    None leaves what PyTorch chose."""
    import torch

    if threads is not None:
        check_range("threads", threads, low=1)
        torch.set_num_threads(threads)
    return torch.get_num_threads()
