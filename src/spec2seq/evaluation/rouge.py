"""ROUGE-1, 2, L and Lsum by the package rouge-score."""

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from spec2seq.errors import missing_extra

VARIANTS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
SENTENCE_BREAK = "<n>"  # what stands for a line break in a text of one line


def statistics(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """F-measures of each line and a 1 to count it by, float64 [lines, 5].

    Words are stemmed, as the summarization scripts of Transformers do; rouge-score drops every letter outside a–z.
    ROUGE-Lsum takes the sentences that a line break or `<n>` separates; where there is none it is ROUGE-L.
    Raises Spec2SeqError if rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise missing_extra("rouge-score", "eval") from None
    scorer = RougeScorer(VARIANTS, use_stemmer=True)
    rows = []
    for pair in zip(references, hypotheses, strict=True):
        scores = scorer.score(*(text.replace(SENTENCE_BREAK, "\n") for text in pair))
        rows.append([*(scores[name].fmeasure for name in VARIANTS), 1.0])
    return np.array(rows)


def mean(total: np.ndarray) -> np.ndarray:
    """Mean F-measures in percent, [4], of summed `statistics` [5]."""
    return 100 * total[:-1] / total[-1]


def signature() -> str:
    made_by = f"rouge-score-{version('rouge-score')}"
    return f"nrefs:1|stemmer:yes|sentences:newline or {SENTENCE_BREAK}|mean:lines|version:{made_by}"
