"""What a pass costs on this machine, measured in a fraction of a second when a length rule asks for it."""

import time
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch

from spec2seq.decoding.drafters import Drafter, LittleModel
from spec2seq.decoding.lengths import PassCosts
from spec2seq.models.encoder_decoder import EncoderDecoder

LENGTHS = (1, 2, 3, 5, 9, 17)
SOURCE, PREFIX = 32, 16  # tokens; a pass's cost hardly depends on them at usual lengths
REPEATS = 5

_measured: WeakKeyDictionary[EncoderDecoder, dict[int, Callable[[float], float]]] = WeakKeyDictionary()


def measure_costs(verifier: EncoderDecoder, drafter: Drafter, rows: int) -> PassCosts:
    """Costs of verifying and of drafting at batch size `rows`; each model is measured once for each batch size."""
    verify = _pass_cost(verifier, rows)
    if not isinstance(drafter, LittleModel):
        return PassCosts(verify=lambda k: verify(1 + k), draft=lambda k: 0.0)
    little = _pass_cost(drafter.model, rows)
    # A draft's first pass is fed one or two tokens.
    return PassCosts(verify=lambda k: verify(1 + k), draft=lambda k: little(1.5) + (k - 1) * little(1) if k else 0.0)


def _pass_cost(model: EncoderDecoder, rows: int) -> Callable[[float], float]:
    known = _measured.setdefault(model, {})
    if rows not in known:
        known[rows] = _measure(model, rows)
    return known[rows]


@torch.inference_mode()
def _measure(model: EncoderDecoder, rows: int) -> Callable[[float], float]:
    """Seconds of a pass by block length, interpolated between measured ones; the least of a few repeats."""
    device = model.device
    tokens = torch.full((rows, SOURCE), model.architecture.eos_token_id, device=device)
    cache = model.new_cache(rows)
    model.admit(cache, 0, model.encode(tokens, torch.full((rows,), SOURCE, device=device)))
    lengths = torch.full((rows,), PREFIX, device=device)
    least = dict.fromkeys(LENGTHS, float("inf"))
    for _ in range(REPEATS):
        for length in LENGTHS:
            _wait(device)
            started = time.perf_counter()
            model.decode_block(
                cache, tokens[:, :length], lengths, PREFIX + length, uniform=True, source_horizon=SOURCE
            ).logits.argmax(-1)
            _wait(device)
            least[length] = min(least[length], time.perf_counter() - started)

    def cost(length: float) -> float:
        for low, high in zip(LENGTHS, LENGTHS[1:], strict=False):
            if length <= high or high == LENGTHS[-1]:
                share = (length - low) / (high - low)
                return least[low] * (1 - share) + least[high] * share
        raise AssertionError("LENGTHS has at least two entries")

    return cost


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
