"""The tokens that a drafter is to propose: the most frequent ones of what its verifier writes (FR-Spec, Zhao et al.
2025). Its head reads no others."""

import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from spec2seq import io
from spec2seq.config import check_range
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.files import write_json
from spec2seq.models.loading import SHORTLIST_FILE, load_config

COVERED = 0.97  # of what the verifier writes, for a block drafter


def frequent(outputs: Iterable[Sequence[int]], covered: float = COVERED) -> list[int]:
    """The fewest tokens that are such a share of all, the most frequent first."""
    counts = collections.Counter(itertools.chain.from_iterable(outputs)).most_common()
    sums = [0, *itertools.accumulate(count for _, count in counts)]
    return [token for (token, _), before in zip(counts, sums, strict=False) if before < covered * sums[-1]]


def read_outputs(path: Path) -> Iterator[list[int]]:
    """The token ids of every line that `distill` or `calibrate` wrote. Raises Spec2SeqError, naming the line, for one
    that has none."""
    for line in io.read_fields(path, "target"):
        tokens = line.fields.get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise Spec2SeqError(f"{path}: line {line.number}: field 'tokens' is missing or no list of token ids")
        yield tokens


def write_shortlist(little: Path, outputs: Path, covered: float = 0.99) -> tuple[list[int], int]:
    """Write `little`/shortlist.json, which `Seq2Seq.drafter` takes; returns its ids and the size of the vocabulary.

    Args:
        little: folder of the little model.
        outputs: JSONL that `distill` or `calibrate` wrote with the verifier.
        covered: what share of the tokens there the shortlist has, from 0.5 to 1.

    Raises UsageError for another share or no folder, Spec2SeqError for one without a model or outputs that are not its.
    """
    check_range("covered", covered, low=0.5, high=1.0)
    if not little.is_dir():
        raise UsageError(f"{little}: no such folder; allowed: that of a little model, which gets the list")
    vocabulary, chosen = load_config(str(little)).vocab_size, sorted(frequent(read_outputs(outputs), covered))
    if not chosen or chosen[-1] >= vocabulary:
        reason = f"token {chosen[-1]}, {little} has {vocabulary}" if chosen else "no tokens"
        raise Spec2SeqError(f"{outputs}: {reason}; needed: what the verifier of this little model wrote")
    write_json(little / SHORTLIST_FILE, chosen)
    return chosen, vocabulary
