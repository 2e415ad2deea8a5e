"""Requests wait here until a slot is free."""

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from spec2seq.decoding.stats import Counts

Source = Sequence[int] | Tensor  # ids with the end token, or a spectrogram `[places, 2 * bins]`


@dataclass
class Request:
    """One source on its way through the engine: ids, or a spectrogram. Its output begins with `prompt`, behind `start`
    (None: the decoder's own); `tokens` are what comes then. `trace` has a letter for each: d(rafter) or v(erifier)."""

    id: int
    source: Source
    max_new_tokens: int
    seed: int
    prompt: tuple[int, ...] = ()
    start: int | None = None
    tokens: list[int] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    trace: str = ""


@dataclass(frozen=True)
class Completion:
    """A finished request: its tokens (without the decoder start and the prompt, with the end token if it came to one).
    Of beam search also its hypotheses (score, tokens), best first; if it is asked for, each token's log-probability;
    and what an engine's `at_end` said."""

    id: int
    tokens: list[int]
    counts: Counts
    trace: str
    hypotheses: tuple[tuple[float, list[int]], ...] = ()
    log_probabilities: list[float] | None = None
    more: Any = None


class Scheduler:
    """First come, first served; admits in groups so that sources are encoded together."""

    def __init__(self, slots: int):
        self.slots = slots
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # [slot]

    def submit(self, request: Request) -> None:
        self.waiting.append(request)

    def admissible(self) -> list[Request]:
        """The group to admit now, which no longer waits. Encoding one source at a time costs more than leaving a slot
        empty for a few passes, so freed slots are filled a quarter of the batch at a time, or when nothing else waits.
        """
        free = self.slots - len(self.running)
        wanted = min(free, len(self.waiting))
        if not wanted or (self.running and free < self._group and len(self.waiting) > free):
            return []
        return [self.waiting.popleft() for _ in range(wanted)]

    def upcoming(self) -> list[Request]:
        """Those who will be among the next group, as far as one can say."""
        return list(itertools.islice(self.waiting, self._group))

    @property
    def _group(self) -> int:
        return max(1, self.slots // 4)

    def leave(self, slot: int) -> Request:
        """The request at `slot` is done; the last one takes its place."""
        request, last = self.running[slot], self.running.pop()
        if last is not request:
            self.running[slot] = last
        return request

    def withdraw(self, request_id: int) -> bool:
        """Forget a waiting request; False if it is not waiting."""
        for request in self.waiting:
            if request.id == request_id:
                self.waiting.remove(request)
                return True
        return False
