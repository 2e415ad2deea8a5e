"""Our slots as a cache of Transformers: each row's keys and values lie at its own places, its modules see one block."""

import torch
from torch import Tensor
from transformers.cache_utils import Cache as TheirCache
from transformers.cache_utils import CacheLayerMixin, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import MoEModelOutput

from spec2seq.models.cache import Cache


class SlotLayer(CacheLayerMixin):
    """One layer for one pass."""

    def __init__(self, own: Tensor, new: tuple[Tensor, Tensor], seen: tuple[Tensor, Tensor], past: int):
        """`own` `[2, slots, heads, capacity, head_width]`; slots and places: `new` `[rows, length]` are written, `seen`
        `[rows, past + length]` read."""
        super().__init__()
        self.own, self.new, self.seen, self.past, self.is_initialized = own, new, seen, past, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the slots are there."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Keep what is new, `[rows, heads, length, head_width]`; returns what each row sees, the new behind it."""
        (new_slots, new), (slots, places) = self.new, self.seen
        for half, states in zip(self.own, (key_states, value_states), strict=True):
            half[new_slots, :, new] = states.transpose(1, 2)
        seen = [half[slots, :, places].transpose(1, 2) for half in self.own]
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
    """A cache of Transformers for a pass of `length` new tokens on slots `rows[n]`, which have `starts[n]` places, the
    longest `past`; their sources are in the slots `sources[n]`.

    Shorter rows are pushed to the right: what stands before them is another place of theirs, which the mask hides.
    """
    rows, starts, place = rows[:, None], starts[:, None], torch.arange(past + length, device=rows.device)
    new, seen = starts + place[:length], (place - (past - starts)).clamp(min=0)
    slots = cache.slots_of(rows, seen)
    own = [SlotLayer(layer, (rows, new), (slots, seen), past) for layer in cache.own.unbind(0)]
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
