"""Speculative decoding for encoder–decoder models: the same loop for every drafter and every acceptance rule."""

from spec2seq.api import Generation, Row, Seq2Seq
from spec2seq.decoding.acceptance import Exact, RejectionSampling, Rollback, TopBeta
from spec2seq.decoding.drafters import LittleModel, NgramLookup
from spec2seq.decoding.lengths import AdaptiveLength, ConfidenceLength, FixedLength
from spec2seq.decoding.methods import Assisted, Beam, BiLD, Greedy, Lookup, Sample, Speculative
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.version import __version__ as __version__

__all__ = [
    "AdaptiveLength", "Assisted", "Beam", "BiLD", "ConfidenceLength", "Exact", "FixedLength", "Generation", "Greedy",
    "LittleModel", "Lookup", "NgramLookup", "RejectionSampling", "Rollback", "Row", "Sample", "Seq2Seq",
    "Spec2SeqError", "Speculative", "TopBeta", "UsageError",
]  # fmt: skip
