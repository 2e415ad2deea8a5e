"""Tiny models in float32 and int8 under the compiled executor, and the same in PyTorch."""

import copy
import functools

import pytest
import tiny
import torch
from torch import Tensor

from spec2seq import Seq2Seq
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
def teacher_forced(model: EncoderDecoder, sources: list[list[int]], blocks: list[Tensor]) -> list[Tensor]:
    """Logits of blocks `[rows, length]` that are fed one after another to rows of one length."""
    tokens, lengths = tiny.padded(sources, model.architecture.pad_token_id)
    cache, done, found = model.new_cache(len(sources)), 0, []
    model.admit(cache, 0, model.encode(tokens, lengths))
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
