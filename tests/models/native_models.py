"""Tiny models in float32 and int8 under the compiled executor, and the same in PyTorch."""

import copy
import functools
import itertools
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch import Tensor

from spec2seq import Assisted, BiLD, Greedy, LittleModel, Lookup, Seq2Seq, SpecDec, Speculative, TopBeta
from spec2seq.decoding.cached_blocks import CachedBlockDrafter
from spec2seq.decoding.lengths import FixedLength
from spec2seq.models import executor as executors
from spec2seq.models import native
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.quantize import quantize

needs_compiler = pytest.mark.skipif(bool(native.unavailable()), reason=native.unavailable() or "compiled")
DTYPES = ("float32", "int8")


@functools.cache
def seq2seq(family: str, dtype: str, executor: str = "native") -> Seq2Seq:
    """A tiny model; two copies of one family and dtype have the same weights."""
    base = tiny.seq2seq(family)
    model = copy.deepcopy(base.model).float()
    if dtype == "int8":
        quantize(model)
    if executor == "native":
        native.attach(model)
    return Seq2Seq(model, base.config, base.tokenizer, base.generation_config)


def model(family: str, dtype: str, executor: str = "native") -> EncoderDecoder:
    return seq2seq(family, dtype, executor).model


@torch.inference_mode()
def teacher_forced(
    model: EncoderDecoder, sources: list[list[int]], blocks: list[Tensor], rounded: bool = False
) -> list[Tensor]:
    """Logits of blocks `[rows, length]` that are fed one after another to rows of one length. `rounded`: after the
    sources' keys and values were rounded to 16 bits."""
    tokens, lengths = tiny.padded(sources, model.architecture.pad_token_id)
    cache, done, found = model.new_cache(len(sources)), 0, []
    model.admit(cache, 0, model.encode(tokens, lengths))
    if rounded:
        cache.source.copy_(cache.source.half())
    for block in blocks:
        start = torch.full((len(sources),), done)
        done += block.shape[1]
        found.append(model.decode_block(cache, block, start, done, uniform=True).logits)
    return found


@torch.inference_mode()
def branching(model: EncoderDecoder, source: list[int], steps: int) -> tuple[Tensor, list[list[int]]]:
    """Beams that change places at every step, and of which there are fewer in the end: the logits `[rows, vocabulary]`
    behind their last tokens, and all their tokens."""
    generator = torch.Generator().manual_seed(3)
    tokens, lengths = tiny.padded([source], model.architecture.pad_token_id)
    cache, beams = model.new_cache(5), [[] for _ in range(5)]
    model.admit(cache, 0, model.encode(tokens, lengths))
    for step in range(steps):
        if step:
            order = torch.randint(0, len(beams), (5 if step < steps // 2 else 3,), generator=generator)
            cache.reorder(order, step)
            beams = [beams[row] for row in order]
        new = torch.randint(3, tiny.VOCABULARY - 1, (len(beams), 1), generator=generator)
        beams = [[*beam, word] for beam, word in zip(beams, new[:, 0].tolist(), strict=True)]
        logits = model.decode_block(
            cache, new, torch.full((len(beams),), step), step + 1, uniform=True, sources=1, source_horizon=len(source)
        ).logits
    return logits[:, 0], beams


def block_drafter(family: str, dtype: str, run: str = "native", **shape) -> CachedBlockDrafter:
    """The same random drafter for `native_models.seq2seq` of the same family and dtype."""
    drafter = copy.deepcopy(tiny.cached_drafter(tiny.seq2seq(family), **shape).model).float()
    executors.prepare(drafter, dtype, run)
    return CachedBlockDrafter(drafter)


def little_model(family: str, dtype: str) -> LittleModel:
    """A model much like `native_models.seq2seq`, as its drafter."""
    little = tiny.noisy_copy(tiny.seq2seq(family), 0.3).model.float()
    executors.prepare(little, dtype, "native")
    return LittleModel(little)


METHODS = {
    "greedy": lambda block, little: Greedy(),
    "exact": lambda block, little: SpecDec(block, 4),
    "adaptive": lambda block, little: Speculative(block, Alternating()),  # drafts now and then
    "top-beta": lambda block, little: SpecDec(block, 4, beta=3, tau=2.0),
    "top-1": lambda block, little: SpecDec(block, 3, beta=1, tau=0.0),
    "assisted": lambda block, little: Assisted(little, 3),
    "assisted-top-beta": lambda block, little: Speculative(little, Alternating(), TopBeta(3, 2.0)),
    "lookup": lambda block, little: Lookup(4),
    "bild": lambda block, little: BiLD(little, 0.05, 2.0),
    "bild-exact": lambda block, little: BiLD(little, 0.03, 0.0, starts="verifier", verify_tail=True),
    "bild-forward": lambda block, little: BiLD(little, None, None, 3),
    "shortlist": lambda block, little: BiLD(little.scoring(SHORTLIST), 0.06, 2.0),
}
SHORTLIST = range(1, 60, 2)


class Alternating(FixedLength):
    """k is 0, 3, 0, 0, 2 …, whatever was measured."""

    def chooser(self, costs):
        order = itertools.cycle([0, 3, 0, 0, 2, 4])

        def ignore(*given):
            pass

        return SimpleNamespace(
            choose=lambda: next(order), more=lambda most: 0, observe=ignore, filled=ignore, took=ignore
        )
