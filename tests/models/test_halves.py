"""Keys and values of sources in 16 bits, as models in int8 have them."""

import copy

import native_models
import pytest
import tiny
import torch
from native_models import METHODS, needs_compiler

from spec2seq import Beam, Greedy, Seq2Seq
from spec2seq.models import executor as executors
from spec2seq.models.cache import Cache
from spec2seq.models.encoder_decoder import Encoded

pytestmark = needs_compiler
LARGEST = torch.finfo(torch.float16).max


@torch.inference_mode()
def admitted(model, encoded: Encoded, source_dtype: torch.dtype) -> Cache:
    rows = len(encoded.lengths)
    cache = Cache(model.architecture.decoder, rows, torch.float32, torch.device("cpu"), source_dtype=source_dtype)
    model.admit(cache, 0, encoded)
    return cache


@torch.inference_mode()
def decoded(model, cache: Cache, tokens: torch.Tensor) -> torch.Tensor:
    rows, length = tokens.shape
    return model.decode_block(cache, tokens, torch.zeros(rows, dtype=torch.long), length, uniform=True).logits


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4, 1e7])
def test_rounded_to_the_nearest_and_never_infinite(family, scale):
    """The same bits as PyTorch's conversion, down to the smallest normal number; what is too large is the largest."""
    model = native_models.model(family, "int8")
    states = torch.randn(3, 40, model.architecture.width) * scale
    encoded = Encoded(torch.zeros(3, 40, dtype=torch.long), torch.tensor([40, 17, 1]), states)
    exact, rounded = (admitted(model, encoded, dtype).source for dtype in (torch.float32, torch.float16))
    wanted = exact.clamp(-LARGEST, LARGEST).half()
    assert exact.abs().max() > LARGEST if scale == 1e7 else exact.abs().max() > 0
    assert rounded.dtype == torch.float16 and rounded.isfinite().all()
    normal = exact.abs() >= torch.finfo(torch.float16).smallest_normal
    assert torch.equal(rounded[normal], wanted[normal])
    assert (rounded.float() - exact)[~normal].abs().max() <= 2**-14 if not normal.all() else True


@pytest.mark.parametrize("width", [32, 96, 128, 192, 256, 512])  # heads of 8, 24, 32, 48, 64 and 128 numbers
@pytest.mark.parametrize("queries", [1, 2, 3, 4, 5, 6, 7, 13])
def test_attention_over_them_is_that_over_the_same_numbers_in_32_bits(width, queries):
    torch.manual_seed(0)
    model = copy.deepcopy(tiny.seq2seq("t5", width=width).model).float()
    executors.prepare(model, "int8", "native")
    states, lengths = torch.randn(3, 70, width), torch.tensor([70, 33, 1])
    halves = admitted(model, Encoded(torch.zeros(3, 70, dtype=torch.long), lengths, states), torch.float16)
    floats = admitted(model, Encoded(torch.zeros(3, 70, dtype=torch.long), lengths, states), torch.float32)
    with torch.inference_mode():
        floats.source.copy_(halves.source)
    fed = torch.randint(3, tiny.VOCABULARY - 1, (3, queries))
    found, wanted = decoded(model, halves, fed), decoded(model, floats, fed)
    if width // 4 % 16:  # the rest of a head is reckoned number by number, as the compiler likes
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("method", [*sorted(METHODS.keys() - {"assisted-top-beta"}), "beam"])
def test_drafted_as_alone_over_long_sources(method):
    """The tokens of each method do not depend on who is beside a row, and those that are lossless are greedy's. (One
    method is left out: it is relaxed and changes its block's length by the step.)"""
    model, little = native_models.seq2seq("t5", "int8"), native_models.little_model("t5", "int8")
    block = native_models.block_drafter("t5", "int8")
    sources = [[3 + (7 * i + 11 * row) % 50 for i in range(length)] for row, length in enumerate((90, 5, 140, 61))]
    asked = Beam(3) if method == "beam" else METHODS[method](block, little)
    together = model.generate(sources, asked, max_new_tokens=20, batch_size=4).sequences
    assert together == [model.generate([one], asked, max_new_tokens=20).sequences[0] for one in sources]
    if method in ("exact", "adaptive", "assisted", "lookup", "top-1"):
        assert together == model.generate(sources, Greedy(), max_new_tokens=20).sequences


def test_who_has_them(family):
    """Models and drafters in int8 under the compiled executor, and nobody else."""
    for dtype, executor, wanted in (
        ("int8", "native", torch.float16), ("float32", "native", torch.float32), ("int8", "torch", torch.float32)
    ):  # fmt: skip
        cache = native_models.model(family, dtype, executor).new_cache(2)
        assert (cache.own.dtype, cache.source.dtype) == (torch.float32, wanted)
        drafter = native_models.block_drafter(family, dtype, executor)
        assert drafter.model.new_cache(2).source.dtype == wanted
    moved = native_models.block_drafter(family, "float32").model.double()
    assert moved.new_cache(2).source.dtype == torch.float64


def test_kept_tensors_of_another_dtype_are_not_taken():
    model: Seq2Seq = native_models.seq2seq("bart", "int8")
    model.generate(tiny.sources(model, 2), max_new_tokens=5, batch_size=2)
    [kept] = model.model.spare.kept
    assert kept[1].dtype == torch.float16
    kinds = tuple((tensor.shape[2], torch.float32) for tensor in kept)
    assert model.model.spare.take(kinds) is None
