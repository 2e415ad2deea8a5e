"""What a GPU's memory has room for: the bytes that are left, those of a row, and so many rows in flight."""

import math
from typing import Any

import torch

from spec2seq.config import check_range
from spec2seq.decoding.methods import Beam, Speculative
from spec2seq.decoding.static_loop import LEAST, drop_idle, idle_bytes, up
from spec2seq.errors import UsageError
from spec2seq.models.architecture import Architecture, StackShape
from spec2seq.models.cache import AHEAD
from spec2seq.models.cached_drafter import CachedDrafter
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.paper_drafter import PaperDrafter

GIB = 2**30
KEPT = 0.9  # of what is left; the rest is for graphs, libraries and what lies between two tensors
GROWTH = 1.5  # a cache that grows is there twice for a moment, first half as large


def limit(device: torch.device, gib: float) -> None:
    """Let PyTorch take no more of a GPU in this process. Raises UsageError for another device, or another number than
    the GPU has."""
    if device.type != "cuda":
        raise UsageError(f"device_memory is of GPUs; device is {str(device)!r}")
    total = torch.cuda.get_device_properties(device).total_memory
    check_range("device_memory", gib, low=0.1, high=math.ceil(total / GIB))
    index = torch.cuda.current_device() if device.index is None else device.index  # it takes no device without one
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total), index)


def planned_rows(verifier: EncoderDecoder, method: Speculative | Beam, rows: int, source: int, output: int) -> int:
    """How many of `rows` rows (of beam search: sentences), of at most so many source and output tokens, may be in
    flight on the verifier's GPU. Raises UsageError if none has room."""
    take = _sentence if isinstance(method, Beam) else _row
    row = take(verifier, method, up(source, LEAST, 4), output)
    free, idle = _left(verifier.device), idle_bytes(verifier)
    planned = rows_within(rows, row, free + idle)
    if planned * row > KEPT * free:
        drop_idle(verifier)
    return planned


def _row(verifier: EncoderDecoder, method: Speculative, source: int, output: int) -> int:
    """Bytes of a row by a method."""
    drafter, stacks, features = getattr(method.drafter, "model", None), [verifier.architecture.decoder], 0
    if drafter is not None:
        stacks.append(_decoder(drafter))
        features = len(method.drafter.hidden_layers)
    k = method.length.cap if method.drafter is not None else 0
    places = up(output + 2 * k + 2, LEAST) + AHEAD  # of a cache that grew as it may
    return row_bytes(verifier.architecture, stacks, features, verifier.dtype.itemsize, source, places, k)


def _sentence(verifier: EncoderDecoder, method: Beam, source: int, output: int) -> int:
    """Bytes of a sentence: its source is there once, its beams have rows of their own, whose scores are compared in
    float32 and summed up, and whose keys and values of a layer are gathered from where other beams have left them."""
    a, size, places = verifier.architecture, verifier.dtype.itemsize, up(output + 2, LEAST) + AHEAD
    scores = 3 * 4 * a.vocabulary
    gathered = 2 * a.decoder.heads * a.decoder.head_width * places * size
    books = 3 * 8 * places  # tokens, and in which row each place lies, before and after a step
    beam = row_bytes(a, [a.decoder], 0, size, 0, places, 0) + scores + gathered + books
    return row_bytes(a, [a.decoder], 0, size, source, 0, 0) + method.num_beams * beam


def row_bytes(
    a: Architecture, stacks: list[StackShape], features: int, size: int, source: int, output: int, k: int
) -> int:
    """Bytes that a row takes at most.

    Args:
        a: of the verifier.
        stacks: what has caches for the row.
        features: states of the verifier that a drafter keeps for each output token.
        size: bytes of a number.
        source, output: places in the caches.
        k: the longest draft.
    """
    places = 2 * sum(stack.layers * stack.heads * stack.head_width for stack in stacks)
    kept = (places * (source + output) + features * a.width * output) * size
    waiting = a.width * source * size if features else 0  # states that a drafter reads when it first drafts
    logits = (k + 1) * a.vocabulary * (size + 4)  # some rules compare them in float32
    encoding = source * (6 * a.width + 2 * a.encoder.ffn_width) * size
    if a.position_rows is None:  # the biases of all pairs, with and without a mask, and the distances they come from
        encoding += source * source * (2 * a.encoder.heads * size + 5 * 8)
    return math.ceil(GROWTH * kept) + waiting + logits + encoding


def rows_within(asked: int, row: int, free: int) -> int:
    """How many of the rows asked for have room in so many bytes. Raises UsageError if none has."""
    rows = min(asked, int(KEPT * free) // row)
    if rows < 1:
        raise UsageError(
            f"a row of the longest source and output takes {row / GIB:.3g} GiB, and {KEPT * free / GIB:.3g} GiB of the "
            "device's memory are left for rows; lower max_new_tokens, or raise device_memory"
        )
    return rows


def _decoder(drafter: Any) -> StackShape:
    if isinstance(drafter, CachedDrafter):
        return drafter.stack
    return (drafter.config if isinstance(drafter, PaperDrafter) else drafter).architecture.decoder


def _left(device: torch.device) -> int:
    """Bytes that PyTorch may still take: what is free, within `limit`."""
    free, total = torch.cuda.mem_get_info(device)
    held, used = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    most = int(total * torch.cuda.get_per_process_memory_fraction(device))
    return max(0, min(free + held, most) - used)
