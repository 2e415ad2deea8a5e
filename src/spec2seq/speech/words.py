"""When each word was said: the way through what the decoder's heads looked at while it wrote (openai-whisper 20250625,
timing.py)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spec2seq.decoding.scheduler import Request
from spec2seq.errors import UsageError
from spec2seq.models.cache import Cache
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.layers import Layer, SelfAttention, additive_mask
from spec2seq.models.native import NativeLinear


@dataclass(frozen=True)
class Word:
    """What was said from `start` to `end`, in seconds, with the space before it."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Listener:
    """Looks where `model` listens while it writes what a row has written, its timestamps left out, behind `told`
    tokens, the decoder's start first. `heads`: pairs of layer and head; `smoothed`: see `starts`."""

    model: EncoderDecoder
    heads: tuple[tuple[int, int], ...]
    no_timestamps: int
    end: int
    smoothed: int

    @torch.inference_mode()
    def __call__(self, cache: Cache, places: int, request: Request) -> Tensor:
        """Scores `[heads, tokens, places]` of a row that has ended, by a pass more over what it was told, its text and
        the end token."""
        told = [*self._told(request), self.no_timestamps]
        text = [token for token in request.tokens if token < self.end]
        tokens = [*told, *text[: self.model.architecture.max_positions - len(told) - 1], self.end]
        return attention_scores(self.model, cache, places, tokens, self.heads)

    def _told(self, request: Request) -> list[int]:
        """Language and task, behind the decoder's own start: what was said before the window counts for nothing."""
        own = self.model.architecture.decoder_start_token_id
        given = [own if request.start is None else request.start, *request.prompt]
        last = len(given) - 1 - given[::-1].index(own)
        return [token for token in given[last:] if token != self.no_timestamps]


def attention_scores(
    model: EncoderDecoder, cache: Cache, places: int, tokens: Sequence[int], heads: Sequence[tuple[int, int]]
) -> Tensor:
    """What some heads of the decoder make of the source in a cache of one row, otherwise empty, while it reads tokens:
    scores before the softmax, `[heads, tokens, places]`, float32 on the host."""
    layers, length = sorted({layer for layer, _ in heads}), len(tokens)
    fed = torch.tensor([list(tokens)], device=model.device)
    cache.reserve(length)
    inputs = model.decode_block(
        cache, fed, torch.zeros(1, dtype=torch.long, device=model.device), length, uniform=True,
        source_horizon=places, logit_positions=torch.zeros_like(fed[:, :1]), hidden_layers=tuple(layers),
    ).hidden  # fmt: skip
    later = torch.ones(length, length, dtype=torch.bool, device=model.device).triu(1)
    attention = SelfAttention(1, length, additive_mask(later, model.dtype)[None, None])
    scores = {}
    for index in layers:
        layer, x = _own_layer(model, index), inputs[index][0]
        x = x + layer.self_attention(layer.self_norm(x), index, attention)
        query = layer.cross_query(layer.cross_norm(x)).view(length, layer.heads, layer.head_width).transpose(0, 1)
        key = cache.source[index, 0, 0, :, :places].to(query.dtype)
        scale = layer.head_width**-0.5 if layer.scale is None else layer.scale
        scores[index] = scale * (query @ key.transpose(1, 2)).float().cpu()
    return torch.stack([scores[index][head] for index, head in heads])


def _own_layer(model: EncoderDecoder, index: int) -> Layer:
    """A layer of the decoder, whose linear layers run on their own in the compiled executor where the model does:
    PyTorch is slow in int8."""
    layer, native = model.decoder.layers[index], model.decoder.native
    if native is None or not native.takes(model.target_embedding):
        return layer
    made = copy.copy(layer)
    made._modules = dict(layer._modules)
    for name in ("self_qkv", "self_out", "cross_query"):
        made._modules[name] = NativeLinear.over(getattr(native.layers[index], name))
    return made


def starts(scores: Tensor, places: int, told: int, smoothed: int) -> np.ndarray:
    """At which of the first `places` each token of a text began, and behind them where the last ended: `[tokens + 1]`
    of `scores[heads, told + tokens + 1, ...]`, which the last told token and each but the last of the text chose.
    `smoothed`: places of the median filter."""
    total = scores.new_zeros(scores.shape[1], places)
    for head in scores:  # one by one: the windows of the filter are `smoothed` times as large
        weights = head[:, :places].softmax(-1)
        std, mean = torch.std_mean(weights, dim=0, keepdim=True, unbiased=False)
        weights = (weights - mean) / std.clamp(min=1e-12)
        if places > smoothed // 2:
            padded = torch.nn.functional.pad(weights, (smoothed // 2, smoothed // 2), mode="reflect")
            weights = padded.unfold(-1, smoothed, 1).median(-1).values
        total += weights
    return first_places(-(total / len(scores))[told - 1 : -1].double().numpy())


def first_places(costs: np.ndarray) -> np.ndarray:
    """The first column of each row on the cheapest way through `costs[rows, columns]` from corner to corner, each step
    to the next row, the next column or both (dynamic time warping)."""
    rows, columns = costs.shape
    # Diagonal d has the places (i, d - i) at index i, so that a whole one follows from the two before it.
    total = np.full((rows + columns + 1, rows + 1), np.inf, dtype=np.float32)
    came = np.zeros(total.shape, dtype=np.int8)  # from 0: both before, 1: the row before, 2: the column before
    skewed = np.zeros((rows + columns + 1, rows + 1))
    for row in range(1, rows + 1):
        skewed[row + 1 : row + 1 + columns, row] = costs[row - 1]
    total[0, 0] = 0.0
    for diagonal in range(2, rows + columns + 1):
        here = slice(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        above = slice(here.start - 1, here.stop - 1)
        both, row, column = total[diagonal - 2, above], total[diagonal - 1, above], total[diagonal - 1, here]
        step = np.where((both < row) & (both < column), 0, np.where((row < both) & (row < column), 1, 2))
        came[diagonal, here] = step
        total[diagonal, here] = skewed[diagonal, here] + np.choose(step, (both, row, column))
    first, row, column = np.zeros(rows, dtype=np.int64), rows, columns
    while row > 0:
        first[row - 1] = max(column - 1, 0)
        step = 1 if column == 0 else came[row + column, row]
        row, column = row - (step != 2), column - (step != 1)
    return first


def words_of(tokenizer: Any, tokens: Sequence[int], language: str | None) -> list[tuple[str, int]]:
    """The words of a text, punctuation with the word it belongs to, and how many tokens each has."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, _combine_tokens_into_words

    found, _, places = _combine_tokens_into_words(tokenizer, list(tokens), LANGUAGES.get(language, "english"))
    return [(word, len(part)) for word, part in zip(found, places, strict=True)]


def alignment_heads(settings: dict[str, Any], layers: int, heads: int) -> tuple[tuple[int, int], ...]:
    """Those that a generation config names; else all of the last half of the layers. Raises UsageError for others than
    the model has."""
    named = settings.get("alignment_heads")
    if named is None:
        return tuple((layer, head) for layer in range(layers // 2, layers) for head in range(heads))
    found = tuple((int(layer), int(head)) for layer, head in named)
    if not found or not all(0 <= layer < layers and 0 <= head < heads for layer, head in found):
        shape = f"the decoder has {layers} layers of {heads} heads"
        raise UsageError(f"generation setting alignment_heads={named!r} is not possible: {shape}")
    return found
