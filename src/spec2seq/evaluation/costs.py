"""What a pass of a model costs on this machine, by how many tokens it is fed, and what its memory allows at least."""

import time
from collections.abc import Sequence

import torch

from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.quantize import weights_of

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
SOURCE, PREFIX = 32, 16  # tokens; a pass's cost hardly depends on them at usual lengths
REPEATS = 12
ARRAY, GPU_ARRAY = 256 << 20, 4 << 30  # bytes; a GPU reads the smaller one so fast that the call counts


@torch.inference_mode()
def pass_seconds(model: EncoderDecoder, rows: int, lengths: Sequence[int] = LENGTHS) -> dict[int, float]:
    """Seconds of a decoder pass over `rows` rows, choosing the likeliest tokens included, by block length: the least
    of a few interleaved repeats."""
    device = model.device
    tokens = torch.full((rows, SOURCE), model.architecture.eos_token_id, device=device)
    cache = model.new_cache(rows)
    cache.reserve(PREFIX)
    cache.own.zero_()  # what nobody has written may be anything
    model.admit(cache, 0, model.encode(tokens, torch.full((rows,), SOURCE, device=device)))
    starts = torch.full((rows,), PREFIX, device=device)
    least = dict.fromkeys(lengths, float("inf"))
    for _ in range(REPEATS):
        for length in lengths:
            wait(device)
            started = time.perf_counter()
            block = tokens[:, :1].expand(-1, length)
            decoded = model.decode_block(cache, block, starts, PREFIX + length, uniform=True, source_horizon=SOURCE)
            decoded.logits.argmax(-1)
            wait(device)
            least[length] = min(least[length], time.perf_counter() - started)
    return least


@torch.inference_mode()
def bandwidth(device: str = "cpu") -> float:
    """Bytes per second that the machine reads from memory with PyTorch's threads: the sum of an array that no cache
    holds, the best of a few repeats."""
    array = torch.ones((GPU_ARRAY if device.startswith("cuda") else ARRAY) // 4, device=device)
    least = float("inf")
    for _ in range(REPEATS):
        wait(array.device)
        started = time.perf_counter()
        array.sum()
        wait(array.device)
        least = min(least, time.perf_counter() - started)
    return array.nbytes / least


def pass_bytes(model: EncoderDecoder) -> int:
    """Bytes of weights that a decoder pass reads: its layers and the head, not the rows of the embedding."""
    return sum(weight.nbytes for weight in weights_of(model.decoder.layers, model.head))


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
