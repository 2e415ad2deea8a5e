"""The lean Transformer layers that encoder, decoder and drafters share.

Hidden states travel as `[rows * length, width]`: at one token a row an extra view costs as much as a norm.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spec2seq.errors import Spec2SeqError
from spec2seq.models.architecture import Architecture, StackShape
from spec2seq.models.cache import Cache

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class Block:
    """The new tokens of a pass and which keys each of them sees; every executor of a stack reads this.

    `horizon` keys are there: those of `cache`, the block's own included, or without a cache (an encoder) the block's
    own. `starts[rows]` says where a row's new places begin; None: all at `horizon - length`. The first `causal` queries
    of a row see nothing behind them, the rest the whole block; `ends` `[rows, length or 1]`, how many keys each query
    sees, stands in for that. `mask`, additive and broadcastable to `[rows, heads, length, horizon]`, stands in for all
    of it, relative bias included. `lengths[rows]`, of an encoder: how much of each row is real; what is behind it is
    seen by nobody, and its states are anything.
    """

    rows: int
    length: int
    horizon: int
    cache: Cache | None = None
    starts: Tensor | None = None
    causal: int = 0
    ends: Tensor | None = None
    mask: Tensor | None = None
    lengths: Tensor | None = None

    def attention(self, x: Tensor, bias_by_distance: Callable[[Tensor], Tensor] | None) -> "SelfAttention":
        """What the layers in PyTorch share for states like `x`."""
        mask = self.mask if self.mask is not None else self._mask(x, bias_by_distance)
        store = None
        if self.cache is not None:
            store = self.cache.writer(self.rows, self.starts, self.length, self.horizon)
        return SelfAttention(self.rows, self.length, mask, store)

    def _mask(self, x: Tensor, bias_by_distance: Callable[[Tensor], Tensor] | None) -> Tensor | None:
        end = self.ends if self.lengths is None else self.lengths[:, None]
        all_seen = end is None and self.starts is None and (self.causal == 0 or self.length == 1)
        if all_seen and bias_by_distance is None:
            return None
        keys, steps = (torch.arange(n, device=x.device) for n in (self.horizon, self.length))
        first = self.horizon - self.length if self.starts is None else self.starts[:, None]
        query = first + steps[None]  # [rows or 1, length]
        if end is None:
            end = query + 1 if self.causal == self.length else first + torch.where(
                steps < self.causal, steps + 1, self.length
            )[None]  # fmt: skip
        hidden = keys >= end[:, :, None]  # [rows or 1, length or 1, keys]
        if bias_by_distance is None:
            return additive_mask(hidden, x.dtype)[:, None]
        return bias_by_distance(query[:, :, None] - keys).masked_fill(hidden[:, None], -torch.inf)


@dataclass
class SelfAttention:
    """What every layer in PyTorch shares for self-attention.

    `mask` is additive, broadcastable to `[rows, heads, length, keys]`: one for all layers or one for each, or None
    where everything is visible.
    `store` puts the new keys and values of layer i (`[rows, length, 2, heads, head_width]`) into the cache and
    returns all keys and values, each `[rows, heads, keys, head_width]`; None in an encoder.
    """

    rows: int
    length: int
    mask: Tensor | tuple[Tensor, ...] | None
    store: Callable[[int, Tensor], tuple[Tensor, Tensor]] | None = None


@dataclass(frozen=True)
class CrossAttention:
    """Cached keys and values of the source, `[layers, 2, sources, heads, source length, head_width]`.

    A source serves `rows / sources` consecutive rows (the beams of a sentence), so it exists once. `lengths[sources]`
    says how much of each is real; None: all.
    """

    key_value: Tensor
    lengths: Tensor | None

    @cached_property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, `[sources, heads, source length, head_width]`."""
        return [layer.unbind(0) for layer in self.key_value.unbind(0)]

    @cached_property
    def mask(self) -> Tensor | None:
        if self.lengths is None:
            return None
        return padding_mask(self.lengths, self.key_value.shape[4], self.key_value.dtype)


class Layer(nn.Module):
    """One encoder layer, or with `cross` one decoder layer."""

    def __init__(self, architecture: Architecture, shape: StackShape, cross: bool):
        super().__init__()
        width, inner, bias = architecture.width, shape.heads * shape.head_width, architecture.bias
        self.heads, self.head_width, self.inner = shape.heads, shape.head_width, inner
        self.pre_norm, self.gated = architecture.pre_norm, architecture.gated
        self.scale = architecture.attention_scale
        self.activation = activation_function(architecture.activation)
        self.self_qkv = nn.Linear(width, 3 * inner, bias=bias)
        self.self_out = nn.Linear(inner, width, bias=bias)
        self.self_norm = make_norm(architecture)
        if cross:
            self.cross_query = nn.Linear(width, inner, bias=bias)
            self.cross_key_value = nn.Linear(width, 2 * inner, bias=bias)
            self.cross_out = nn.Linear(inner, width, bias=bias)
            self.cross_norm = make_norm(architecture)
        self.ffn_in = nn.Linear(width, shape.ffn_width * (2 if self.gated else 1), bias=bias)
        self.ffn_out = nn.Linear(shape.ffn_width, width, bias=bias)
        self.ffn_norm = make_norm(architecture)

    def forward(self, x: Tensor, index: int, attention: SelfAttention, cross: CrossAttention | None) -> Tensor:
        """x: `[rows * length, width]` → the same shape."""
        if self.pre_norm:
            x = x + self.self_attention(self.self_norm(x), index, attention)
            if cross is not None:
                x = x + self.cross_attention(self.cross_norm(x), index, attention, cross)
            return x + self.feed_forward(self.ffn_norm(x))
        x = self.self_norm(x + self.self_attention(x, index, attention))
        if cross is not None:
            x = self.cross_norm(x + self.cross_attention(x, index, attention, cross))
        return self.ffn_norm(x + self.feed_forward(x))

    def self_attention(self, x: Tensor, index: int, attention: SelfAttention) -> Tensor:
        qkv = self.self_qkv(x).view(attention.rows, attention.length, 3, self.heads, self.head_width)
        query = qkv[:, :, 0].transpose(1, 2)
        if attention.store is None:
            key, value = qkv[:, :, 1].transpose(1, 2), qkv[:, :, 2].transpose(1, 2)
        else:
            key, value = attention.store(index, qkv[:, :, 1:])
        mask = attention.mask[index] if isinstance(attention.mask, tuple) else attention.mask
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)
        return self.self_out(mixed.transpose(1, 2).reshape(-1, self.inner))

    def cross_attention(self, x: Tensor, index: int, attention: SelfAttention, cross: CrossAttention) -> Tensor:
        key, value = cross.layers[index]
        # The rows of one source become further query positions, so that its keys are read once.
        query = self.cross_query(x).view(key.shape[0], -1, self.heads, self.head_width).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=cross.mask, scale=self.scale)
        return self.cross_out(mixed.transpose(1, 2).reshape(-1, self.inner))

    def feed_forward(self, x: Tensor) -> Tensor:
        inner = self.ffn_in(x)
        if self.gated:
            gate, inner = inner.chunk(2, dim=-1)
            return self.ffn_out(self.activation(gate) * inner)
        return self.ffn_out(self.activation(inner))


def cross_keys_values(layers: Iterable[Layer], states: Tensor) -> Tensor:
    """What cross-attention sees of sources `[rows, length, width]`: `[layers, 2, rows, heads, length, head_width]`."""
    rows, length, width = states.shape
    states, layers = states.reshape(-1, width), list(layers)
    key_value = torch.stack([layer.cross_key_value(states) for layer in layers])
    key_value = key_value.view(len(layers), rows, length, 2, layers[0].heads, layers[0].head_width)
    return key_value.permute(0, 3, 1, 4, 2, 5)


class DropoutLayer(Layer):
    """A layer that can be trained: each part drops out before it is added (Vaswani et al. 2017, section 5.4)."""

    def __init__(self, architecture: Architecture, shape: StackShape, cross: bool, dropout: float):
        super().__init__(architecture, shape, cross)
        self.dropout = nn.Dropout(dropout)

    def self_attention(self, x: Tensor, index: int, attention: SelfAttention) -> Tensor:
        return self.dropout(super().self_attention(x, index, attention))

    def cross_attention(self, x: Tensor, index: int, attention: SelfAttention, cross: CrossAttention) -> Tensor:
        return self.dropout(super().cross_attention(x, index, attention, cross))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(super().feed_forward(x))


class Stack(nn.Module):
    """An encoder or a decoder without its embedding: positions, layers, norms, relative biases."""

    def __init__(self, architecture: Architecture, shape: StackShape, cross: bool):
        super().__init__()
        self.architecture, self.cross = architecture, cross
        self.layers = nn.ModuleList(Layer(architecture, shape, cross) for _ in range(shape.layers))
        if architecture.sound is not None and not cross:
            pass  # its front adds them
        elif architecture.position_rows is not None:
            self.positions = nn.Parameter(torch.empty(architecture.position_rows, architecture.width))
        else:
            tables = shape.layers if architecture.relative_per_layer else 1
            self.relative_bias = nn.Parameter(torch.empty(tables * architecture.relative_buckets, shape.heads))
        self.embedding_norm = make_norm(architecture) if architecture.embedding_norm else None
        self.final_norm = make_norm(architecture) if architecture.final_norm else None
        self.native: Any = None  # the compiled executor, where `native.attach` put one

    def embed(self, embedding: Tensor, tokens: Tensor, positions: Tensor | slice) -> Tensor:
        """Tokens `[rows, length]` at `positions` → `[rows * length, width]`."""
        x = F.embedding(tokens, embedding)
        if self.architecture.embedding_scale != 1.0:
            x = x * self.architecture.embedding_scale
        if self.architecture.position_rows is not None:
            offset = self.architecture.position_offset
            table = self.positions[offset:] if offset else self.positions
            x = x + (self._skipping(tokens, positions) if self.architecture.skip_padding else table[positions])
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        return x.view(-1, self.architecture.width)

    def forward(
        self,
        x: Tensor,
        block: Block,
        cross: CrossAttention | None = None,
        hidden_layers: tuple[int, ...] = (),
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """x `[rows * length, width]` → the output and the states after `hidden_layers` (0: the embedding)."""
        if self.native is not None and self.native.takes(x):
            return self.native(x, block, cross, hidden_layers)
        attention = block.attention(x, None if self.architecture.position_rows else self.bias_by_distance)
        if self.architecture.relative_per_layer:
            attention.mask = attention.mask.chunk(len(self.layers), 1)
        hidden = {0: x} if 0 in hidden_layers else {}
        for index, layer in enumerate(self.layers):
            x = layer(x, index, attention, cross)
            if index + 1 in hidden_layers:
                hidden[index + 1] = x
        if self.final_norm is not None:
            x = self.final_norm(x)
        return x, hidden

    def _skipping(self, tokens: Tensor, positions: Tensor | slice) -> Tensor:
        """Positions of tokens of which padding has none. In a source it does not count either; in an output, which
        comes token by token, it does."""
        a, real = self.architecture, tokens != self.architecture.pad_token_id
        if not self.cross:
            positions = real.cumsum(1) - 1
        elif isinstance(positions, slice):
            positions = torch.arange(positions.start, positions.stop, device=tokens.device)
        return self.positions[torch.where(real, positions + a.position_offset, a.pad_token_id)]

    def bias_by_distance(self, distance: Tensor) -> Tensor:
        """Relative bias (Raffel et al. 2020, section 2.1) for query minus key distances `[rows, queries, keys]`:
        `[rows, tables * heads, queries, keys]`."""
        a, table = self.architecture, self.relative_bias
        buckets = relative_bucket(distance, a.relative_buckets, a.relative_max_distance, bidirectional=not self.cross)
        if a.relative_per_layer:
            table = torch.cat(table.split(a.relative_buckets), 1)
        return F.embedding(buckets, table).permute(0, 3, 1, 2)


def relative_bucket(distance: Tensor, buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """T5's bucket of a query-minus-key distance: exact when near, logarithmic when far, keys ahead apart."""
    offset: Tensor | int = 0
    if bidirectional:
        buckets //= 2
        offset = (distance < 0).long() * buckets
        distance = distance.abs()
    else:
        distance = distance.clamp(min=0)
    exact = buckets // 2
    # float32 whatever the model's dtype: the bucket edges must be those the weights were trained with.
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, far)


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """One of ours, or any other that Transformers knows. Raises Spec2SeqError if neither does, or it has weights."""
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    from transformers.activations import ACT2FN  # slow to import

    try:
        function = ACT2FN[name]
    except KeyError:
        function = None
    if function is None or any(True for _ in function.parameters()):
        allowed = ", ".join([*ACTIVATIONS, "others of Transformers that have no weights"])
        raise Spec2SeqError(f"activation {name!r} is not supported; supported: {allowed}")
    return function


def make_norm(architecture: Architecture) -> nn.Module:
    kind = nn.RMSNorm if architecture.rms_norm else nn.LayerNorm
    return kind(architecture.width, eps=architecture.norm_eps)


def padding_mask(lengths: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Additive mask `[rows, 1, 1, length]` that hides the places from `lengths[rows]` on."""
    hidden = torch.arange(length, device=lengths.device) >= lengths[:, None]
    return additive_mask(hidden, dtype)[:, None, None]


def additive_mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """-infinity where `hidden`, else 0."""
    return torch.zeros((), dtype=dtype, device=hidden.device).expand(hidden.shape).masked_fill(hidden, -torch.inf)
