"""Quality of outputs, how far they are those of greedy decoding, and seconds paired line by line."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spec2seq.evaluation.scoring import make_metric


@dataclass(frozen=True)
class Quality:
    """Corpus BLEU and chrF with the signatures that say how they were computed."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def quality(outputs: Sequence[str], references: Sequence[str]) -> Quality:
    """Raises Spec2SeqError if sacrebleu is not installed."""
    if len(outputs) != len(references):
        raise ValueError(f"{len(outputs)} outputs and {len(references)} references")
    bleu, chrf = make_metric("bleu"), make_metric("chrf")
    scores = [metric.value(metric.statistics(outputs, references).sum(0)).item() for metric in (bleu, chrf)]
    return Quality(*scores, bleu.signature(), chrf.signature())


def share_identical(sequences: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> float:
    """Share of lines with the same token ids; 1 where there are no lines."""
    same = [list(a) == list(b) for a, b in zip(sequences, others, strict=True)]
    return sum(same) / len(same) if same else 1.0


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The first place where two sequences differ, one that ends counted as a difference; None if they are equal."""
    for place, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return place
    return None if len(a) == len(b) else min(len(a), len(b))
