"""Speculative decoding for encoder–decoder models: the same loop for every drafter and every acceptance rule."""

import importlib
from typing import TYPE_CHECKING, Any

from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.version import __version__ as __version__

if TYPE_CHECKING:
    from spec2seq.api import Seq2Seq
    from spec2seq.decoding.acceptance import AcceptanceRule, Draft, Exact, RejectionSampling, Rollback, TopBeta, Verdict
    from spec2seq.decoding.block_drafters import BlockDrafter, PaperBlockDrafter
    from spec2seq.decoding.cached_blocks import CachedBlockDrafter
    from spec2seq.decoding.drafters import Drafter, LittleModel, Session
    from spec2seq.decoding.lengths import AdaptiveLength, ConfidenceLength, FixedLength, LengthRule
    from spec2seq.decoding.lookup import NgramLookup
    from spec2seq.decoding.loop import Engine
    from spec2seq.decoding.methods import Assisted, Beam, BiLD, Greedy, Lookup, Sample, SpecDec, Speculative
    from spec2seq.decoding.official import OfficialBiLD
    from spec2seq.decoding.sampling import Sampling
    from spec2seq.dropin.folder import save_custom_generate
    from spec2seq.dropin.generate import custom_generate, generate
    from spec2seq.dropin.pipelines import pipeline
    from spec2seq.generation import Generation, Row
    from spec2seq.speech.fallback import Fallback
    from spec2seq.speech.transcribe import Transcript, Transcription, transcribe

__all__ = [
    "AcceptanceRule", "AdaptiveLength", "Assisted", "Beam", "BiLD", "BlockDrafter", "CachedBlockDrafter",
    "ConfidenceLength", "Draft", "Drafter", "Engine", "Exact", "Fallback", "FixedLength", "Generation", "Greedy",
    "LengthRule", "LittleModel", "Lookup", "NgramLookup", "OfficialBiLD", "PaperBlockDrafter", "RejectionSampling",
    "Rollback", "Row", "Sample", "Sampling", "Seq2Seq", "Session", "Spec2SeqError", "SpecDec", "Speculative",
    "TopBeta", "Transcript", "Transcription", "UsageError", "Verdict", "custom_generate", "generate", "pipeline",
    "save_custom_generate", "transcribe",
]  # fmt: skip

# Importing torch takes seconds, so a name is imported when it is first used: `spec2seq --help` answers at once.
_ROOMS = {
    "spec2seq.api": ("Seq2Seq",),
    "spec2seq.decoding.acceptance": (
        "AcceptanceRule", "Draft", "Exact", "RejectionSampling", "Rollback", "TopBeta", "Verdict",
    ),
    "spec2seq.decoding.block_drafters": ("BlockDrafter", "PaperBlockDrafter"),
    "spec2seq.decoding.cached_blocks": ("CachedBlockDrafter",),
    "spec2seq.decoding.drafters": ("Drafter", "LittleModel", "Session"),
    "spec2seq.decoding.lengths": ("AdaptiveLength", "ConfidenceLength", "FixedLength", "LengthRule"),
    "spec2seq.decoding.lookup": ("NgramLookup",),
    "spec2seq.decoding.loop": ("Engine",),
    "spec2seq.decoding.methods": ("Assisted", "Beam", "BiLD", "Greedy", "Lookup", "Sample", "SpecDec", "Speculative"),
    "spec2seq.decoding.official": ("OfficialBiLD",),
    "spec2seq.decoding.sampling": ("Sampling",),
    "spec2seq.dropin.folder": ("save_custom_generate",),
    "spec2seq.dropin.generate": ("custom_generate", "generate"),
    "spec2seq.dropin.pipelines": ("pipeline",),
    "spec2seq.generation": ("Generation", "Row"),
    "spec2seq.speech.fallback": ("Fallback",),
    "spec2seq.speech.transcribe": ("Transcript", "Transcription", "transcribe"),
}  # fmt: skip
_HOME = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
