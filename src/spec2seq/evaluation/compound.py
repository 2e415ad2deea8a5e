"""Compound-split tokenised BLEU, the figure of the SpecDec paper: a hyphen inside a word is a token of its own."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

ORDER = 4
_HYPHEN = re.compile(rb"(\S)-(\S)")
_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"


def split_compounds(line: str) -> str:
    """`a-b` as `a ##AT##-##AT## b` wherever a hyphen has a non-space byte on either side, from left to right.

    It works on UTF-8 bytes, as perl does: a no-break space is no space, and in `1-2-3` the `2` is used up by the first
    hyphen while in `ß-ß-ß` the middle letter has a byte for each.
    """
    return _HYPHEN.sub(rb"\1 ##AT##-##AT## \2", line.encode()).decode()


def statistics(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Counts that add up over lines, int64 [lines, 10]: matches of order 1 to 4, totals 1 to 4, both lengths.

    The lines are tokenised and not yet split. Tokens end at Unicode white space, `<unk>` in a reference matches
    nothing, and an empty line counts as one end token: fairseq's scorer (`fairseq-score`).
    """
    return np.array([_line(h, r) for h, r in zip(hypotheses, references, strict=True)], dtype=np.int64)


def bleu(total: np.ndarray) -> np.ndarray:
    """BLEU-4 in percent, [1], of summed `statistics` [10]; no smoothing, so 0 where an order has no match."""
    matches, totals, (made, wanted) = total[:ORDER], total[ORDER : 2 * ORDER], total[2 * ORDER :]
    if not matches.all():
        return np.zeros(1)
    brevity = min(1.0, math.exp(1 - wanted / made))
    return np.array([100 * brevity * math.exp(np.log(matches / totals).mean())])


def _line(hypothesis: str, reference: str) -> list[int]:
    made, wanted = _tokens(hypothesis), _tokens(reference)
    known = [None if token == _UNKNOWN else token for token in wanted]
    orders = range(1, ORDER + 1)
    matches = [(_ngrams(made, n) & _ngrams(known, n)).total() for n in orders]
    return [*matches, *(max(0, len(made) - n + 1) for n in orders), len(made), len(wanted)]


def _tokens(line: str) -> list[str]:
    tokens = [*split_compounds(line).split(), _END]
    while tokens[0] == _PAD:
        del tokens[0]
    while len(tokens) > 1 and tokens[-1] in (_END, _PAD):
        del tokens[-1]
    return tokens


def _ngrams(tokens: Sequence[str | None], n: int) -> Counter:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
