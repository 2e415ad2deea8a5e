"""Is one output better than another on the same lines? Paired bootstrap resampling (Koehn 2004).

sacrebleu's own test resamples in the same way, but it has no interval of the difference, takes its seed from an
environment variable, and calls two identical outputs different (p = 1 / (samples + 1)), which lossless decoding is full
of.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Difference:
    """A score minus the other's, its 95% interval over the resamples, and the two-sided p-value of no difference."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    ours: np.ndarray, theirs: np.ndarray, value: Callable[[np.ndarray], np.ndarray], samples: int, seed: int
) -> list[Difference]:
    """Compare two outputs by `samples` draws of as many lines as there are, with replacement, the same for both.

    `ours` and `theirs` are statistics [lines, numbers] that add up over lines; `value` makes [scores] of a sum
    [numbers]. One Difference for each score. The p-value is the share of draws that lie as far from the difference
    seen as that lies from 0, the difference itself counted as one draw.
    """
    lines = len(ours)
    seen = value(ours.sum(0)) - value(theirs.sum(0))
    draws = np.random.default_rng(seed).choice(lines, size=(samples, lines), replace=True)
    drawn = np.array([value(ours[rows].sum(0)) - value(theirs[rows].sum(0)) for rows in draws])
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    as_far = (np.abs(drawn - seen) >= np.abs(seen)).sum(0)
    p_values = (as_far + 1) / (samples + 1)
    return [Difference(*map(float, row)) for row in zip(seen, low, high, p_values, strict=True)]
