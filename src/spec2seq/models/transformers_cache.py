"""Our slots as a cache of Transformers: each row's keys and values lie at its own places, its modules see one block."""

import torch
from torch import Tensor
from transformers.cache_utils import Cache as TheirCache
from transformers.cache_utils import CacheLayerMixin, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import MoEModelOutput

from spec2seq.models.cache import Cache


class SlotLayer(CacheLayerMixin):
    """One layer for one pass. Rows that are shorter than `past` are pushed to the right: what stands before them is
    another place of theirs, which the mask hides."""

    def __init__(
        self, own: Tensor, origins: Tensor | None, rows: Tensor, starts: Tensor, past: int, length: int
    ):  # fmt: skip
        """`own` `[2, slots, heads, capacity, head_width]`; the row i is slot `rows[i]` and has `starts[i]` places.
        `origins`: see `Cache.reorder`."""
        super().__init__()
        self.own, self.rows, self.past, self.is_initialized = own, rows[:, None], past, True
        self.new = starts[:, None] + torch.arange(length, device=rows.device)
        self.seen = (torch.arange(past + length, device=rows.device) - (past - starts[:, None])).clamp(min=0)
        self.lie = self.rows if origins is None else origins[self.rows, self.seen]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the slots are there."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Keep what is new, `[rows, heads, length, head_width]`; returns what each row sees, the new behind it."""
        for half, states in enumerate((key_states, value_states)):
            self.own[half][self.rows, :, self.new] = states.transpose(1, 2)
        seen = [half[self.lie, :, self.seen].transpose(1, 2) for half in self.own]
        return seen[0], seen[1]

    def get_seq_length(self) -> int:
        return self.past

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.past + query_length, 0

    def get_max_length(self) -> int:
        return -1


def empty() -> EncoderDecoderCache:
    """A cache of Transformers' own, every layer whole."""
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def over_slots(
    cache: Cache, rows: Tensor, starts: Tensor, past: int, length: int, sources: Tensor, source_length: int
) -> EncoderDecoderCache:
    """A cache of Transformers for a pass of `length` new tokens on slots `rows[n]`, whose sources are in the slots
    `sources[n]`; the longest row has `past` places."""
    own = [SlotLayer(layer, cache.origins, rows, starts, past, length) for layer in cache.own.unbind(0)]
    crossed = DynamicCache()
    for index, layer in enumerate(cache.source.unbind(0)):
        crossed.update(*layer[:, sources, :, :source_length].unbind(0), index)
    return EncoderDecoderCache(TheirCache(layers=own), crossed)


def encoder_output(states: Tensor) -> MoEModelOutput:
    """Encoder states as Transformers' own encoders return them, those with experts, too."""
    return MoEModelOutput(last_hidden_state=states)


def source_keys_values(cache: EncoderDecoderCache) -> Tensor:
    """What cross-attention keeps of the sources: `[layers, 2, rows, heads, length, head_width]`."""
    return torch.stack([torch.stack([layer.keys, layer.values]) for layer in cache.cross_attention_cache.layers])
