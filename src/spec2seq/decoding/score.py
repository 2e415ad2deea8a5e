"""How likely an output is under a model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from spec2seq.decoding.processors import Prefix, Processor, processed
from spec2seq.decoding.rows import Rows, padded
from spec2seq.decoding.scheduler import Source
from spec2seq.models.cache import Cache
from spec2seq.models.encoder_decoder import EncoderDecoder


@torch.inference_mode()
def log_probability(model: EncoderDecoder, source: Source, output: list[int]) -> float:
    """Sum over `output` of each token's log-probability, in nats, given the source and the tokens before it."""
    if not output:
        return 0.0
    tokens = [model.architecture.decoder_start_token_id, *output]
    return float(_of_next(logits_behind(model, source, tokens[:-1]), torch.tensor([output], device=model.device)).sum())


@torch.inference_mode()
def logits_behind(model: EncoderDecoder, source: Source, tokens: Sequence[int]) -> Tensor:
    """The logits `[1, length, vocabulary]` behind each of the tokens, of which the first is a decoder's start."""
    lengths, cache = torch.tensor([len(source)], device=model.device), model.new_cache(1)
    model.admit(cache, 0, model.encode(padded([source], 0).to(model.device), lengths))
    fed = torch.tensor([list(tokens)], device=model.device)
    return model.decode_block(cache, fed, torch.zeros_like(lengths), len(tokens), uniform=True).logits


def row_log_probabilities(
    model: EncoderDecoder, rows: Rows, cache: Cache, slot: int, processors: Sequence[Processor]
) -> list[float]:
    """Of each token that the row at a slot has written, under the processors, in nats: one more pass over them."""
    given, length = rows.host_given[slot], rows.host_lengths[slot]
    here = slice(slot, slot + 1)
    tokens = rows.tokens[here, :length]
    cache.reserve(length - 1)
    logits = model.decode_block(
        cache.slots_from(slot), tokens[:, given - 1 : -1], rows.given[here] - 1, length - 1, uniform=True,
        source_horizon=rows.host_sources[slot],
    ).logits  # fmt: skip
    limits = rows.limits.new_tensor([rows.host_limits[slot]])  # in a graph a row that ends has its length for a limit
    logits = processed(logits, Prefix(tokens, rows.given[here], limits, rows.given[here]), processors)
    return _of_next(logits, tokens[:, given:])[0].tolist()


def _of_next(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities `[rows, length]` of the tokens by the logits before each."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.log_softmax(-1).gather(2, tokens[:, :, None])[:, :, 0]
