"""When a window is heard again, and when nothing was said in it (Radford et al. 2023, section 4.5)."""

import math
import zlib
from dataclasses import dataclass
from typing import Any

from spec2seq.config import check_range
from spec2seq.errors import UsageError

HOT = 0.5  # what was written at this temperature or a higher one tells the next window nothing


@dataclass(frozen=True)
class Fallback:
    """A window whose text repeats itself, or that the model is not sure of, is drawn anew at the next of the
    `temperatures`, until one stands or there are no more; the last stands. The paper's numbers.

    Args:
        temperatures: rising, above 0. Empty: a window is only judged silent or not.
        compression_ratio: the most that zlib may make of a text, as bytes before over bytes after (Transformers takes
            the bytes of the token ids); None: anything.
        log_probability: the least mean log-probability of a window's tokens, in nats, or score of its best beam; None:
            any.
        no_speech: a window is silent, and left out, if the model gives the token for that a greater probability than
            this, and the mean log-probability is below its threshold, too; None: none is. Where the second holds, it
            takes a further pass of the encoder.
        seed: for the draws.
    """

    temperatures: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio: float | None = 2.4
    log_probability: float | None = -1.0
    no_speech: float | None = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        rising = isinstance(self.temperatures, tuple | list) and all(map(_is_temperature, self.temperatures))
        if not rising or list(self.temperatures) != sorted(self.temperatures):
            raise UsageError(
                f"temperatures of the fallback are {self.temperatures!r}; allowed: numbers above 0, rising"
            )
        check_range("compression_ratio", self.compression_ratio, low=0.0)
        check_range("log_probability", self.log_probability, high=0.0)
        check_range("no_speech", self.no_speech, low=0.0, high=1.0)
        check_range("seed of the fallback", self.seed, low=0, high=2**30)

    def draws(self, attempt: int) -> int:
        """The seed of an attempt: that of no other one, and hardly a method's own."""
        return (1 << 39) + (self.seed << 8) + attempt

    def unsure(self, log_probability: float | None) -> bool:
        """Whether the mean log-probability of a window is too low; None: it is not asked for."""
        return self.log_probability is not None and log_probability < self.log_probability

    def repeats(self, text: str) -> bool:
        """Whether a text can be compressed so well that it repeats itself."""
        return self.compression_ratio is not None and compression_ratio(text) > self.compression_ratio


def _is_temperature(value: Any) -> bool:
    return isinstance(value, int | float) and 1e-6 <= value < math.inf


def compression_ratio(text: str) -> float:
    """Bytes of a text over bytes of what zlib makes of it."""
    written = text.encode()
    return len(written) / len(zlib.compress(written))
