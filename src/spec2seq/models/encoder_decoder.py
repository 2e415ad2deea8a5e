"""The model as the decoding loop sees it: encode a group of sources, decode a block over the cache."""

import copy
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from spec2seq.config import check_range
from spec2seq.models.architecture import Architecture
from spec2seq.models.cache import Cache, Spare
from spec2seq.models.layers import Block, CrossAttention, Layer, Stack, cross_keys_values
from spec2seq.models.quantize import some_outputs
from spec2seq.models.sound import SoundFront


@dataclass(frozen=True)
class Encoded:
    """A group of encoded sources: ids `[rows, length]` (right-padded), or of sounds spectrograms
    `[rows, length, 2 * bins]`; lengths `[rows]`; states `[rows, length, width]`."""

    tokens: Tensor
    lengths: Tensor
    states: Tensor

    def part(self, rows: slice) -> "Encoded":
        """Some of its rows."""
        return Encoded(self.tokens[rows], self.lengths[rows], self.states[rows])


@dataclass(frozen=True)
class Decoded:
    """Logits `[rows, asked positions, vocabulary]`, final states `[rows, length, width]` and those of the layers
    asked for."""

    logits: Tensor
    states: Tensor
    hidden: dict[int, Tensor]


class EncoderDecoder(nn.Module):
    """An encoder–decoder Transformer over a preallocated cache, rows ragged."""

    def __init__(self, architecture: Architecture, tied_head: bool, logit_bias: bool):
        super().__init__()
        self.architecture = architecture
        width, vocabulary = architecture.width, architecture.vocabulary
        if architecture.sound is None:
            self.source_embedding = nn.Parameter(torch.empty(architecture.source_vocabulary or vocabulary, width))
        else:
            self.front = SoundFront(architecture.sound, width)
        self.target_embedding = nn.Parameter(torch.empty(vocabulary, width))
        self.encoder = Stack(architecture, architecture.encoder, cross=False)
        self.decoder = Stack(architecture, architecture.decoder, cross=True)
        self.head = nn.Linear(width, vocabulary, bias=logit_bias)
        if tied_head:
            self.head.weight = self.target_embedding
        self.native_head: Any = None  # as Stack.native
        self.native: Any = None
        self.spare = Spare()
        self.graphs = False  # whether the engine may run iterations over fixed tensors, each a graph on a GPU

    @property
    def dtype(self) -> torch.dtype:
        return self.target_embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.target_embedding.device

    @property
    def shares_embedding(self) -> bool:
        """Whether sources and outputs have one table."""
        return getattr(self, "source_embedding", None) is self.target_embedding

    def reads_as(self, other: Any) -> bool:
        """Whether another model has the same encoder, number for number; they are compared once."""
        if self.encoder is getattr(other, "encoder", None):
            return True
        known = _alike.setdefault(self, WeakKeyDictionary())
        if other not in known:
            known[other] = isinstance(other, EncoderDecoder) and _same_encoder(self, other)
        return known[other]

    def first_layers(self, count: int) -> "EncoderDecoder":
        """This model with the first `count` layers of its decoder alone: same weights, same encoder, same head."""
        check_range("early_exit", count, low=1, high=self.architecture.decoder.layers - 1)
        made = _shallow(self)
        made.decoder, made.spare = _shallow(self.decoder), Spare()
        made.decoder.layers = self.decoder.layers[:count]
        shape = dataclasses.replace(self.architecture.decoder, layers=count)
        made.architecture = dataclasses.replace(self.architecture, decoder=shape)
        if self.native is not None:
            made.native = self.native.first_layers(count)
            made.decoder.native = made.native.stack
        return made

    def scoring(self, tokens: Tensor) -> "EncoderDecoder":
        """This model with scores of `tokens[count]` alone: logits `[..., count]`, in their order."""
        made = _shallow(self)
        made.head = some_outputs(self.head, tokens)
        if self.native is not None:
            made.native, made.native_head = self.native.with_head(made.head)
        return made

    def new_cache(self, slots: int, sources: int | None = None) -> Cache:
        """`sources`: how many of the slots have a source of their own, see `decode_block`; None: all."""
        compiled = self.native is not None and self.native.takes(self.target_embedding)
        spare, source_dtype = (self.spare, self.native.stack.source_dtype) if compiled else (None, None)
        return Cache(self.architecture.decoder, slots, self.dtype, self.device, spare, sources, source_dtype)

    def encode(self, tokens: Tensor, lengths: Tensor) -> Encoded:
        """Encode sources `[rows, length]`, right-padded, of `lengths[rows]` tokens; a single row has no padding. Sounds
        are `[rows, length, 2 * bins]`, all of one length."""
        rows, length = tokens.shape[:2]
        if self.architecture.sound is None:
            x, real = self.encoder.embed(self.source_embedding, tokens, slice(0, length)), lengths
        else:
            x, real = self.front(tokens), None
        x, _ = self.encoder(x, Block(rows, length, length, lengths=real if rows > 1 else None))
        return Encoded(tokens, lengths, x.view(rows, length, -1))

    def admit(self, cache: Cache, first_slot: int, encoded: Encoded) -> None:
        """Compute every layer's cross-attention keys and values once, into the slots from `first_slot` on."""
        put_source(cache, first_slot, encoded, self.decoder.layers, self.decoder.native)

    def decode_block(
        self,
        cache: Cache,
        tokens: Tensor,
        lengths: Tensor,
        horizon: int,
        *,
        uniform: bool = False,
        source_horizon: int | None = None,
        sources: int | None = None,
        visible: Tensor | None = None,
        logit_positions: Tensor | None = None,
        hidden_layers: tuple[int, ...] = (),
    ) -> Decoded:
        """Run the decoder over a block of new tokens a row and write their keys and values into the cache.

        Args:
            tokens: `[rows, length]`, the row i at cache slot i; ragged blocks are padded with anything.
            lengths: `[rows]`, how many positions each row has cached; its new tokens come there.
            horizon: the largest of `lengths`, plus `length` (a host integer, so nothing waits for the device).
            uniform: all rows have the same length; saves the masks.
            source_horizon: the longest source among the rows; None: what the cache has room for.
            sources: how many sources serve the rows (fewer than rows in beam search); None: one each.
            visible: `[rows, length]`, how many cache positions each new token sees; None is causal. A block of
                mask slots that sees itself whole gets its own end.
            logit_positions: `[rows, asked]` places of the block to score; None scores all.
            hidden_layers: decoder layers whose states to return (0: the embedding).
        """
        rows, length = tokens.shape
        starts = None if uniform else lengths
        block = Block(rows, length, horizon, cache, starts, length, visible)
        cross = self.cross_attention(cache, rows, sources, source_horizon)
        logits = None
        if self.native is not None and self.native.takes(self.target_embedding):
            x, hidden, logits = self.native(tokens, block, cross, hidden_layers, logit_positions is None)
        else:
            x = self.decoder.embed(self.target_embedding, tokens, self._positions(starts, length, horizon))
            x, hidden = self.decoder(x, block, cross, hidden_layers)
        states = x.view(rows, length, -1)
        asked = states
        if logit_positions is not None:
            asked = states.gather(1, logit_positions[:, :, None].expand(-1, -1, states.shape[2]))
        hidden = {layer: state.view(rows, length, -1) for layer, state in hidden.items()}
        return Decoded(self.logits(asked) if logits is None else logits.view(rows, length, -1), states, hidden)

    def _positions(self, starts: Tensor | None, length: int, horizon: int) -> Tensor | slice:
        """Of the new tokens, `[rows, length]`, or of all rows."""
        if starts is None:
            return slice(horizon - length, horizon)
        places = starts[:, None] + torch.arange(length, device=starts.device)
        most = self.architecture.max_positions
        # Padding of a ragged block may lie beyond the last position; its output is never used.
        return places if most is None else places.clamp(max=most - 1)

    def logits(self, states: Tensor) -> Tensor:
        """States `[..., width]` → logits `[..., vocabulary]`."""
        if self.architecture.logit_scale != 1.0:
            states = states * self.architecture.logit_scale
        if self.native_head is not None and self.decoder.native.takes(states):
            return self.native_head(states)
        return self.head(states)

    def cross_attention(
        self, cache: Cache, rows: int, sources: int | None = None, source_horizon: int | None = None
    ) -> CrossAttention:
        """The sources' keys and values of a cache for a pass over `rows` rows; see `decode_block`."""
        sources = rows if sources is None else sources
        length = cache.source.shape[4] if source_horizon is None else source_horizon
        padded = sources > 1 or source_horizon is None
        lengths = cache.source_lengths[:sources] if padded else None
        return CrossAttention(cache.source[:, :, :sources, :, :length], lengths)


_alike: WeakKeyDictionary[nn.Module, WeakKeyDictionary[nn.Module, bool]] = WeakKeyDictionary()


def _same_encoder(one: EncoderDecoder, other: EncoderDecoder) -> bool:
    """Whether two models make the same states of the same sources."""
    decoders = (dataclasses.replace(model.architecture, decoder=one.architecture.decoder) for model in (one, other))
    if len(set(decoders)) > 1:
        return False
    parts = []
    for model in (one, other):
        parts.append({
            name: value for name, value in model.state_dict().items()
            if name.startswith(("encoder.", "front.", "source_embedding"))
        })  # fmt: skip
    if parts[0].keys() != parts[1].keys():
        return False
    return all(
        (value.shape, value.dtype, value.device) == (found.shape, found.dtype, found.device)
        and torch.equal(value, found)
        for value, found in ((value, parts[1][name]) for name, value in parts[0].items())
    )


def put_source(cache: Cache, first_slot: int, encoded: Encoded, layers: Iterable[Layer], native: Any) -> None:
    """Compute what cross-attention of the layers sees of the sources, with the compiled executor where it is given."""
    if native is not None and native.takes(encoded.states):
        places = cache.source_places(first_slot, encoded.lengths, encoded.states.shape[1])
        native.keys_values(encoded.states, encoded.lengths, places)
    else:
        cache.put_source(first_slot, cross_keys_values(layers, encoded.states), encoded.lengths)


def _shallow(module: nn.Module) -> Any:
    """A copy that shares all weights, whose parts can be replaced."""
    made = copy.copy(module)
    made._modules = dict(module._modules)
    return made
