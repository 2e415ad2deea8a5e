"""What `generate` of Transformers returns: tensors, or its output classes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spec2seq.api import Row


def as_transformers(
    rows: Sequence[Row], start: int, pad: int, device: torch.device, *, beams: bool, as_dict: bool
) -> Any:
    """Generated rows as `sequences` `[rows, length]`: the decoder start token first, padded at the end.

    The hypotheses of beam search are rows of their own, those of a source next to each other, the best first. `as_dict`
    gives `GenerateEncoderDecoderOutput`, or with `beams` `GenerateBeamEncoderDecoderOutput` with the hypotheses' scores
    `[rows]` in `sequences_scores`; their other fields are None.
    """
    hypotheses = [found for row in rows for found in (row.hypotheses if beams else (row,))]
    sequences = padded([[start, *found.tokens] for found in hypotheses], pad).to(device)
    if not as_dict:
        return sequences
    from transformers.generation.utils import GenerateBeamEncoderDecoderOutput, GenerateEncoderDecoderOutput

    if not beams:
        return GenerateEncoderDecoderOutput(sequences=sequences)
    scores = torch.tensor([found.score for found in hypotheses], device=device)
    return GenerateBeamEncoderDecoderOutput(sequences=sequences, sequences_scores=scores)


def padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Rows of ids as one tensor `[rows, longest]`."""
    tokens = torch.full((len(rows), max(map(len, rows))), pad)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids)
    return tokens
