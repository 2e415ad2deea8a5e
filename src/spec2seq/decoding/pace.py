"""What iterations of the engine take, for a length rule to learn from."""

import time
from typing import Any

from spec2seq.decoding.lengths import Chooser


class Pace:
    """Seconds and drafted tokens of the iterations since `begin`. `unread`: rows have just come, whose sources the
    drafter may read in the next one."""

    def __init__(self) -> None:
        self.iterations, self.fed, self.begun, self.unread = 0, 0.0, 0.0, False

    def begin(self) -> None:
        self.iterations, self.fed, self.begun = 0, 0.0, time.perf_counter()

    def booked(self, fed: float) -> None:
        """An iteration has run, in which so many drafted tokens were fed to the verifier, a row in the mean."""
        self.iterations += 1
        self.fed += fed

    def seconds(self, loop: Any) -> float | None:
        """By the loop's own clock if it has one, else all that passed; None where that says nothing of the next
        iteration: sources may have been read in between, or a graph was made."""
        if loop is not None and loop.spent is not None:
            return loop.spent
        if self.unread or not (loop is None or loop.settled):
            return None
        return time.perf_counter() - self.begun

    def tell(self, chooser: Chooser, k: int, loop: Any) -> None:
        """Let a length rule learn from the iterations for which it chose k."""
        n, seconds, passed = self.iterations, self.seconds(loop), time.perf_counter() - self.begun
        chooser.took(k, self.fed / n, None if seconds is None else seconds / n, passed / n)
