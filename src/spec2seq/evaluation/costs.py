"""What a pass of a model costs on this machine, by how many tokens it is fed."""

import time
from collections.abc import Sequence

import torch

from spec2seq.models.encoder_decoder import EncoderDecoder

LENGTHS = (1, 2, 3, 5, 9, 17)
SOURCE, PREFIX = 32, 16  # tokens; a pass's cost hardly depends on them at usual lengths
REPEATS = 12


@torch.inference_mode()
def pass_seconds(model: EncoderDecoder, rows: int, lengths: Sequence[int] = LENGTHS) -> dict[int, float]:
    """Seconds of a decoder pass over `rows` rows, choosing the likeliest tokens included, by block length: the least
    of a few interleaved repeats."""
    device = model.device
    tokens = torch.full((rows, SOURCE), model.architecture.eos_token_id, device=device)
    cache = model.new_cache(rows)
    model.admit(cache, 0, model.encode(tokens, torch.full((rows,), SOURCE, device=device)))
    starts = torch.full((rows,), PREFIX, device=device)
    least = dict.fromkeys(lengths, float("inf"))
    for _ in range(REPEATS):
        for length in lengths:
            _wait(device)
            started = time.perf_counter()
            block = tokens[:, :1].expand(-1, length)
            decoded = model.decode_block(cache, block, starts, PREFIX + length, uniform=True, source_horizon=SOURCE)
            decoded.logits.argmax(-1)
            _wait(device)
            least[length] = min(least[length], time.perf_counter() - started)
    return least


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
