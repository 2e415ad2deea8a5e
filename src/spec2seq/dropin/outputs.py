"""What `generate` of Transformers returns: tensors, or its output classes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spec2seq.api import Seq2Seq
from spec2seq.decoding.processors import Prefix, processed
from spec2seq.decoding.rows import padded
from spec2seq.generation import Row


def sequences(rows: Sequence[Row], start: int, pad: int, beams: bool) -> Tensor:
    """Generated rows as `[rows, length]`: the decoder start token first, padded at the end. The hypotheses of beam
    search are rows of their own, those of a source next to each other, the best first."""
    return padded([[start, *found.tokens] for found in _each(rows, beams)], pad)


def of_beams(rows: Sequence[Row], sequences: Tensor) -> Any:
    """`GenerateBeamEncoderDecoderOutput` with `sequences_scores` `[rows]`; what it says of single steps is None."""
    from transformers.generation.utils import GenerateBeamEncoderDecoderOutput

    scores = torch.tensor([found.score for found in _each(rows, True)], device=sequences.device)
    return GenerateBeamEncoderDecoderOutput(sequences=sequences, sequences_scores=scores)


def of_rows(model: Seq2Seq, config: Any, sources: list[list[int]], sequences: Tensor) -> Any:
    """`GenerateEncoderDecoderOutput`, with `scores` (after the processors) and `logits` (before them) where the config
    asks for them: a tuple with `[rows, vocabulary]`, float32, for every new token."""
    from transformers.generation.utils import GenerateEncoderDecoderOutput

    found: dict[str, tuple[Tensor, ...]] = {}
    if config.output_scores or config.output_logits:
        logits = _logits(model, sources, sequences)
        if config.output_logits:
            found["logits"] = logits.float().unbind(1)
        if config.output_scores:
            found["scores"] = _processed(model, config, logits, sequences).float().unbind(1)
    return GenerateEncoderDecoderOutput(sequences=sequences, **found)


@torch.no_grad()
def _logits(model: Seq2Seq, sources: list[list[int]], sequences: Tensor) -> Tensor:
    """The logits `[rows, length - 1, vocabulary]` that came before each new token, in one more pass: an engine that
    drafts does not meet every place as one-by-one decoding does."""
    verifier, rows = model.model, len(sources)
    lengths = torch.tensor([len(source) for source in sources], device=verifier.device)
    tokens = padded(sources, verifier.architecture.pad_token_id).to(verifier.device)
    cache = verifier.new_cache(rows)
    verifier.admit(cache, 0, verifier.encode(tokens, lengths))
    known = sequences[:, :-1].to(verifier.device)
    return verifier.decode_block(
        cache, known, torch.zeros_like(lengths), known.shape[1], uniform=True, source_horizon=tokens.shape[1]
    ).logits


@torch.no_grad()
def _processed(model: Seq2Seq, config: Any, logits: Tensor, sequences: Tensor) -> Tensor:
    tokens = sequences.to(logits.device)
    ones = torch.ones(len(tokens), dtype=torch.long, device=logits.device)
    return processed(logits, Prefix(tokens, ones, ones * config.max_length), model.processors())


def _each(rows: Sequence[Row], beams: bool) -> list[Any]:
    return [found for row in rows for found in (row.hypotheses if beams else (row,))]
