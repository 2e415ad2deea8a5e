"""What a pass costs on this machine, measured in a fraction of a second when a length rule asks for it."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from spec2seq.decoding.lengths import PassCosts
from spec2seq.models.encoder_decoder import EncoderDecoder

if TYPE_CHECKING:
    from spec2seq.decoding.drafters import Drafter

LENGTHS = (1, 2, 3, 5, 9, 17)
SOURCE, PREFIX = 32, 16  # tokens; a pass's cost hardly depends on them at usual lengths
REPEATS = 12

_measured: WeakKeyDictionary[EncoderDecoder, dict[int, Callable[[float], float]]] = WeakKeyDictionary()


def measure_costs(verifier: EncoderDecoder, drafter: "Drafter", rows: int) -> PassCosts:
    """Costs of verifying and of drafting at batch size `rows`, for length rules that ask."""
    seconds = pass_cost(verifier, rows)
    return PassCosts(verify=lambda k: seconds(1 + k), draft=drafter.cost(rows))


def pass_cost(model: EncoderDecoder, rows: int) -> Callable[[float], float]:
    """Seconds of a decoder pass by block length, at `rows` rows; measured once for each model and batch size."""
    known = _measured.setdefault(model, {})
    if rows not in known:
        known[rows] = _measure(model, rows)
    return known[rows]


@torch.inference_mode()
def _measure(model: EncoderDecoder, rows: int) -> Callable[[float], float]:
    """Seconds of a pass by block length, interpolated between measured ones; the least of a few repeats."""
    device, most = model.device, model.architecture.max_positions or SOURCE + LENGTHS[-1]
    source, sizes = min(SOURCE, most), [length for length in LENGTHS if length <= most]
    prefix = min(PREFIX, most - sizes[-1])
    tokens = torch.full((rows, source), model.architecture.eos_token_id, device=device)
    cache = model.new_cache(rows)
    model.admit(cache, 0, model.encode(tokens, torch.full((rows,), source, device=device)))
    lengths = torch.full((rows,), prefix, device=device)
    least = dict.fromkeys(sizes, float("inf"))
    for _ in range(REPEATS):
        for length in sizes:
            _wait(device)
            started = time.perf_counter()
            model.decode_block(
                cache, tokens[:, :length], lengths, prefix + length, uniform=True, source_horizon=source
            ).logits.argmax(-1)
            _wait(device)
            least[length] = min(least[length], time.perf_counter() - started)
    for low, high in zip(sizes, sizes[1:], strict=False):
        least[high] = max(least[low], least[high])  # noise must not make a longer pass look cheaper, or free

    def cost(length: float) -> float:
        for low, high in zip(sizes, sizes[1:], strict=False):
            if length <= high or high == sizes[-1]:
                share = (length - low) / (high - low)
                return least[low] * (1 - share) + least[high] * share
        return least[sizes[-1]]  # one position: nothing to interpolate

    return cost


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
