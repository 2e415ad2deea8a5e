"""What outputs begin with, read before anything is written."""

import torch

from spec2seq.decoding.methods import Speculative
from spec2seq.decoding.rows import Rows
from spec2seq.models.cache import Cache
from spec2seq.models.encoder_decoder import Decoded, EncoderDecoder


def read_prompts(
    verifier: EncoderDecoder, method: Speculative, rows: Rows, cache: Cache, first: int
) -> Decoded | None:  # fmt: skip
    """Put the prompts of the rows from slot `first` on into the cache, but for the last token of each, which the next
    pass feeds. Returns the verifier's pass, without scores; None where there are no prompts."""
    length = max(rows.host_given[first : rows.count]) - 1
    if not length:
        return None
    cache.reserve(length)
    fed = rows.tokens[first : rows.count, :length]
    return verifier.decode_block(
        cache.slots_from(first), fed, torch.zeros_like(fed[:, 0]), length, uniform=True,
        source_horizon=max(rows.host_sources[first : rows.count]), logit_positions=fed[:, :0],
        hidden_layers=method.drafter.hidden_layers if method.drafter else (),
    )  # fmt: skip
