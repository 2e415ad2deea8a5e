"""The cached block drafter: one or two layers on top of the verifier, k tokens from one pass.

It shares the verifier's encoder output, embedding and head. A committed token enters once, as its embedding and the
verifier's hidden states that chose it, is read causally, and its keys and values stay cached. Its last place guesses
the next token; k - 1 learned slots behind it guess the following ones, seeing the prefix, the source and one another.
The layers run once for all slots; then tokens are chosen from left to right, and a small network adds to each slot's
state what the token chosen before it tells (as the heads of Ankner et al. 2024, Hydra).
"""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spec2seq.errors import Spec2SeqError
from spec2seq.models import drafter_folder
from spec2seq.models.architecture import StackShape
from spec2seq.models.cache import Cache
from spec2seq.models.cached_drafter_shape import CachedDrafterConfig
from spec2seq.models.encoder_decoder import Encoded, EncoderDecoder, put_source
from spec2seq.models.layers import (
    Block,
    CrossAttention,
    Layer,
    additive_mask,
    cross_keys_values,
    make_norm,
    relative_bucket,
)
from spec2seq.models.quantize import QuantizedLinear, some_outputs

KIND = "cached"


class CachedDrafter(nn.Module):
    """See the module."""

    def __init__(self, config: CachedDrafterConfig):
        super().__init__()
        architecture, shape = config.architecture, config.shape
        most = architecture.decoder.layers
        if any(not 0 <= layer <= most for layer in shape.hidden_layers):
            raise Spec2SeqError(f"hidden_layers is {[*shape.hidden_layers]}; allowed: 0 to {most}, the verifier's")
        width, decoder = architecture.width, architecture.decoder
        self.shape, self.architecture, self.verifier = shape, architecture, config.verifier
        self.stack = StackShape(shape.layers, decoder.heads, decoder.head_width, shape.feed_forward)
        self.mix = nn.Linear(width * (1 + len(shape.hidden_layers)), width)
        self.slots = nn.Parameter(torch.empty(shape.block_size - 1, width))
        self.layers = nn.ModuleList(Layer(architecture, self.stack, cross=True) for _ in range(shape.layers))
        self.final_norm = make_norm(architecture) if architecture.final_norm else None
        if architecture.position_rows is None:
            self.relative_bias = nn.Parameter(torch.empty(architecture.relative_buckets, decoder.heads))
        if shape.shortlist:
            if shape.shortlist > architecture.vocabulary:
                allowed = f"at most {architecture.vocabulary}, the vocabulary"
                raise Spec2SeqError(f"shortlist is {shape.shortlist}; allowed: {allowed}")
            self.register_buffer("shortlist", torch.arange(shape.shortlist))
        self.follow = Follow(width, shape.follow_width) if shape.follow_width else None
        self.native: Any = None  # as Stack.native
        self.native_mix: Any = None

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "CachedDrafter":
        """Load what `save_pretrained` wrote, float32. Raises Spec2SeqError for anything else."""
        return drafter_folder.load(folder, KIND, CachedDrafterConfig, cls).float().requires_grad_(False)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write configuration and weights, float16. Raises Spec2SeqError if `folder` exists, or in int8."""
        if isinstance(self.mix, QuantizedLinear):
            raise Spec2SeqError("an int8 drafter is not saved; save it as it was loaded, and load it with dtype int8")
        config = CachedDrafterConfig(self.architecture, self.shape, self.verifier)
        drafter_folder.save(folder, KIND, dataclasses.asdict(config), copy.deepcopy(self).half())

    @torch.no_grad()
    def start_from(self, verifier: EncoderDecoder) -> None:
        """First weights: the verifier's last decoder layers where their sizes fit, else small random ones."""
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
        width = self.architecture.width
        blocks = self.mix.weight.view(width, -1, width)
        for block in range(blocks.shape[1]):  # the mean of what comes in
            blocks[:, block] += torch.eye(width) / blocks.shape[1]
        self.mix.bias.zero_()
        if self.follow is not None:
            self.follow.token.weight.mul_(self.architecture.embedding_scale)  # the embedding comes unscaled
            self.follow.out.weight.zero_()  # nothing is added at first
        if self.stack == dataclasses.replace(self.architecture.decoder, layers=self.stack.layers):
            last = verifier.decoder.layers[-len(self.layers) :]
            for mine, theirs in zip(self.layers, last, strict=True):
                mine.load_state_dict(theirs.state_dict())
        if self.final_norm is not None:
            self.final_norm.load_state_dict(verifier.decoder.final_norm.state_dict())
        if self.architecture.position_rows is None:
            self.relative_bias.copy_(verifier.decoder.relative_bias[-self.architecture.relative_buckets :])

    @property
    def dtype(self) -> torch.dtype:
        return self.slots.dtype

    @property
    def device(self) -> torch.device:
        return self.slots.device

    def guess_head(self, verifier: EncoderDecoder) -> nn.Module:
        """The verifier's head for the tokens that are guessed at all, in its own precision."""
        outputs = self.shortlist if self.shape.shortlist else slice(None)
        return some_outputs(verifier.head, outputs, self.architecture.logit_scale)

    def tokens(self, places: Tensor) -> Tensor:
        """Places among the logits of `guess_head` → token ids."""
        return self.shortlist[places] if self.shape.shortlist else places

    def places(self, tokens: Tensor) -> Tensor:
        """Token ids → places among the logits of `guess_head`, -100 for those that are never guessed."""
        if not self.shape.shortlist:
            return tokens
        table = torch.full((self.architecture.vocabulary,), -100, device=tokens.device)
        table[self.shortlist] = torch.arange(len(self.shortlist), device=tokens.device)
        return table[tokens]

    def new_cache(self, slots: int) -> Cache:
        compiled = self.native is not None and self.native.takes(self.slots)
        source_dtype = self.native.source_dtype if compiled else None
        return Cache(self.stack, slots, self.dtype, self.device, source_dtype=source_dtype)

    def admit(self, cache: Cache, first_slot: int, encoded: Encoded) -> None:
        """Compute every layer's cross-attention keys and values of the sources once."""
        put_source(cache, first_slot, encoded, self.layers, self.native)

    def guess(
        self,
        verifier: EncoderDecoder,
        cache: Cache,
        tokens: Tensor,
        features: Tensor,
        fed: Tensor,
        fresh: Tensor,
        k: int,
        horizon: int,
        source_horizon: int | None,
        uniform: bool = False,
    ) -> Tensor:
        """States `[rows, k, width]` that guess the next k tokens of every row.

        Args:
            tokens: `[rows, new]`, committed tokens that the cache has not, right-padded.
            features: `[rows, new, hidden layers * width]`, the verifier's states that chose them.
            fed, fresh: `[rows]`, how many tokens the cache has, and how many of `new` are a row's own.
            horizon: the largest of `fed`, plus `new` + k - 1.
            uniform: all rows have the same `fed`, and `new` tokens each; saves most of the masks.

        The slots come behind the widest row's tokens; what lies between is hidden from them, and the next call
        overwrites all of it.
        """
        rows, new = tokens.shape
        length, most = new + k - 1, self.architecture.max_positions
        if uniform and most is not None and horizon <= most:
            start = horizon - length
            own, ahead = slice(start, start + new), slice(start + new, horizon)
            block = Block(rows, length, horizon, cache, causal=new)
        else:
            mask, own, ahead = self._ragged_mask(fed, fresh, new, length, horizon)
            block = Block(rows, length, horizon, cache, fed, mask=mask)
        x = self._inputs(verifier, tokens, features, own)
        if k > 1:
            x = torch.cat([x, self._slots(verifier, ahead, self.slots[: k - 1]).expand(rows, -1, -1)], 1)
        x = self._run(x, block, verifier.cross_attention(cache, rows, source_horizon=source_horizon))
        if isinstance(own, slice):
            return x[:, new - 1 :]
        last = (fresh - 1)[:, None, None].expand(-1, 1, x.shape[2])
        return torch.cat([x.gather(1, last), x[:, new:]], 1)

    def _ragged_mask(self, fed: Tensor, fresh: Tensor, new: int, length: int, horizon: int):
        """The mask, and the places of the tokens `[rows, new]` and of the slots `[rows, length - new]`."""
        steps = torch.arange(length, device=fed.device)
        keys = torch.arange(horizon, device=fed.device) - fed[:, None]  # from each row's first new token
        query_slot, key_slot = steps >= new, keys >= new
        query_place = fed[:, None] + torch.where(query_slot, fresh[:, None] + steps - new, steps)
        key_place = fed[:, None] + torch.where(key_slot, fresh[:, None] + keys - new, keys)
        own = (keys < fresh[:, None])[:, None] & (query_slot[:, None] | (keys[:, None] <= steps[:, None]))
        among = query_slot[:, None] & (key_slot & (keys < length))[:, None]
        mask = self._mask(own | among, query_place, key_place, self.dtype)
        return mask, query_place[:, :new], query_place[:, new:]

    def block_states(
        self, verifier: EncoderDecoder, encoded: Encoded, tokens: Tensor, features: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """States for training: several blocks of every sentence at once.

        Args:
            tokens: `[rows, length]`, the decoder's inputs, start token first, right-padded.
            features: `[rows, length, hidden layers * width]`, the states that chose each token; zeros at first.
            anchors: `[rows, blocks]`, the places behind which a block of slots stands.

        Returns:
            States at the tokens `[rows, length, width]`, each guessing the next, and at the slots
            `[rows, blocks, k - 1, width]`, slot j behind anchor t guessing token t + 2 + j.
        """
        (rows, length), blocks = tokens.shape, anchors.shape[1]
        size, device = self.shape.block_size - 1, tokens.device
        steps = torch.arange(length, device=device)
        slot_places = (anchors[:, :, None] + torch.arange(1, size + 1, device=device)).view(rows, -1)
        places = torch.cat([steps.expand(rows, -1), slot_places], 1)
        block = torch.arange(blocks, device=device).repeat_interleave(size)
        sees_prefix = torch.cat([steps.expand(rows, -1), anchors.repeat_interleave(size, 1)], 1)
        prefix = steps <= sees_prefix[:, :, None]
        same = torch.zeros(length + len(block), len(block), dtype=torch.bool, device=device)
        same[length:] = block[:, None] == block
        visible = torch.cat([prefix, same.expand(rows, -1, -1)], 2)
        mask = self._mask(visible, places, places, self.mix.weight.dtype)
        x = self._inputs(verifier, tokens, features, places[:, :length])
        slots = self._slots(verifier, slot_places, self.slots.repeat(blocks, 1)).expand(rows, -1, -1)
        x = torch.cat([x, slots], 1)
        x = self._run(x, Block(rows, x.shape[1], x.shape[1], mask=mask), self._cross(encoded))
        return x[:, :length], x[:, length:].view(rows, blocks, size, -1)

    def _inputs(self, verifier: EncoderDecoder, tokens: Tensor, features: Tensor, places: Tensor | slice) -> Tensor:
        embedded = verifier.decoder.embed(verifier.target_embedding, tokens, self._within(places))
        x = torch.cat([embedded.view(*tokens.shape, -1), features], 2)
        return self.native_mix(x) if self.native is not None and self.native.takes(x) else self.mix(x)

    def _slots(self, verifier: EncoderDecoder, places: Tensor | slice, slots: Tensor) -> Tensor:
        if self.architecture.position_rows is None:
            return slots
        return slots + verifier.decoder.positions[self.architecture.position_offset :][self._within(places)]

    def _within(self, places: Tensor | slice) -> Tensor | slice:
        """Slots may stand behind the last position; what they guess there is cut off."""
        most = self.architecture.max_positions
        return places if most is None or isinstance(places, slice) else places.clamp(max=most - 1)

    def _mask(self, visible: Tensor, query_place: Tensor, key_place: Tensor, dtype: torch.dtype) -> Tensor:
        """Additive `[rows, heads or 1, queries, keys]` from visible `[rows, queries, keys]` and places."""
        if self.architecture.position_rows is not None:
            return additive_mask(~visible, dtype)[:, None]
        bias = self.bias_by_distance(query_place[:, :, None] - key_place[:, None])
        return bias.masked_fill(~visible[:, None], -torch.inf)

    def bias_by_distance(self, distance: Tensor) -> Tensor:
        """As `Stack.bias_by_distance`, with a table of its own for all layers."""
        a = self.architecture
        buckets = relative_bucket(distance, a.relative_buckets, a.relative_max_distance, bidirectional=False)
        return F.embedding(buckets, self.relative_bias).permute(0, 3, 1, 2)

    def _cross(self, encoded: Encoded) -> CrossAttention:
        return CrossAttention(cross_keys_values(self.layers, encoded.states), encoded.lengths)

    def _run(self, x: Tensor, block: Block, cross: CrossAttention) -> Tensor:
        rows, length, width = x.shape
        x = x.reshape(-1, width)
        if self.native is not None and self.native.takes(x):
            return self.native(x, block, cross)[0].view(rows, length, width)
        attention = block.attention(x, None)
        for index, layer in enumerate(self.layers):
            x = layer(x, index, attention, cross)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return x.view(rows, length, width)

    def choose(
        self,
        verifier: EncoderDecoder,
        head: nn.Module,
        states: Tensor,
        previous: Tensor,
        pick: Callable[[Tensor, int], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Choose tokens from left to right.

        Args:
            verifier: the model whose embedding it shares; `head` is what `guess_head` returned for it.
            states: `[rows, k, width]`, what `guess` returned.
            previous: `[rows]`, the last committed tokens.
            pick: places `[rows]` from the logits `[rows, guessable]` of slot i, and i.

        Returns:
            Tokens `[rows, k]` and logits `[rows, k, guessable]`.
        """
        chosen, scored, inner = [], [], None if self.follow is None else self.follow.state(states)
        for step in range(states.shape[1]):
            state = states[:, step]
            if inner is not None:
                state = state + self.follow(inner[:, step], F.embedding(previous, verifier.target_embedding))
            logits = head(state)
            previous = self.tokens(pick(logits, step))
            chosen.append(previous)
            scored.append(logits)
        return torch.stack(chosen, 1), torch.stack(scored, 1)


class Follow(nn.Module):
    """What the token before a slot adds to its state: two inputs, `inner` hidden units, `width` outputs."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.state, self.token = nn.Linear(width, inner), nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(inner, width)

    def forward(self, state: Tensor, embedded: Tensor) -> Tensor:
        """`state[..., inner]`, which is what `self.state` makes of a slot, and the token's embedding `[..., width]`."""
        return self.out(F.silu(state + self.token(embedded)))
