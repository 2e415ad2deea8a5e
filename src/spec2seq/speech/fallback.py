"""When a window is heard again, and when nothing was said in it (Radford et al. 2023, section 4.5)."""

import zlib
from dataclasses import dataclass

from spec2seq.config import check_range
from spec2seq.errors import UsageError

HOT = 0.5  # what was written at a higher temperature tells the next window nothing


@dataclass(frozen=True)
class Fallback:
    """A window whose text repeats itself, or that the model is not sure of, is drawn anew at the next of the
    `temperatures`, until one stands or there are no more; the last stands. The paper's numbers.

    Args:
        temperatures: rising, above 0. Empty: a window is only judged silent or not.
        compression_ratio: the most that zlib may make of a text, as bytes before over bytes after; None: anything.
        log_probability: the least mean log-probability of a window's tokens, in nats, or score of its best beam; None:
            any.
        no_speech: a window is silent, and left out, if the model gives the token for that a greater probability than
            this, and the mean log-probability is below its threshold, too; None: none is. It takes a further pass of
            the encoder where the second holds.
        seed: for the draws.
    """

    temperatures: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio: float | None = 2.4
    log_probability: float | None = -1.0
    no_speech: float | None = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        for temperature in self.temperatures:
            check_range("temperature of the fallback", temperature, low=1e-6)
        if list(self.temperatures) != sorted(self.temperatures):
            raise UsageError(f"temperatures of the fallback are {self.temperatures}; allowed: rising ones")
        check_range("compression_ratio", self.compression_ratio, low=0.0)
        check_range("log_probability", self.log_probability, high=0.0)
        check_range("no_speech", self.no_speech, low=0.0, high=1.0)
        check_range("seed of the fallback", self.seed, low=0, high=2**32)

    def unsure(self, log_probability: float | None) -> bool:
        """Whether the mean log-probability of a window is too low; None: it is not asked for."""
        return self.log_probability is not None and log_probability < self.log_probability

    def repeats(self, text: str) -> bool:
        """Whether a text can be compressed so well that it repeats itself."""
        return self.compression_ratio is not None and compression_ratio(text) > self.compression_ratio


def compression_ratio(text: str) -> float:
    """Bytes of a text over bytes of what zlib makes of it."""
    written = text.encode()
    return len(written) / len(zlib.compress(written))
