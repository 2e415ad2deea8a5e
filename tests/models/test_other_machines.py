"""The library as it is compiled for CPUs that lack what this one has, run on this one."""

import copy
import platform
import shutil

import native_models
import pytest
import tiny
import torch
from native_models import DTYPES

from spec2seq import Greedy, Lookup, Seq2Seq, SpecDec
from spec2seq.decoding.cached_blocks import CachedBlockDrafter
from spec2seq.kernels import build, library
from spec2seq.models import executor as executors
from spec2seq.models import native

HAS_COMPILER = any(shutil.which(name) for name in build.COMPILERS)
needs_x86 = pytest.mark.skipif(not HAS_COMPILER or platform.machine() != "x86_64", reason="needs a compiler and x86-64")


@pytest.mark.skipif(not HAS_COMPILER, reason="there is no compiler")
def test_where_there_is_a_compiler_there_is_a_library():
    """Nearly all tests of the executor skip where it is not available."""
    assert native.unavailable() == ""


LESSER = {  # and what the CPU of this machine has to have
    "cascadelake": "avx512_vnni",  # AVX-512 with products of codes
    "skylake-avx512": "avx512vl",
    "x86-64-v3": "avx2",
    "x86-64": "sse2",
}


@pytest.fixture(params=LESSER)
def lesser(request, monkeypatch, tmp_path):
    """The library for lesser CPUs, as long as a test takes; no model that was attached before may be used."""
    if LESSER[request.param] not in build.cpu():
        pytest.skip(f"this CPU has no {LESSER[request.param]}")
    monkeypatch.setattr(build, "VARIANTS", ((f"-march={request.param}",),))
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path)
    library.find.cache_clear()
    assert native.unavailable() == ""
    yield request.param
    library.find.cache_clear()


def made(model, dtype: str, executor: str):
    model = copy.deepcopy(model).float()
    executors.prepare(model, dtype, executor)
    return model


@needs_x86
def test_lesser_cpus(lesser):
    """Passes over short and long sources are PyTorch's, in int8 with the sources' keys and values in 16 bits; drafted
    and in batches the tokens are greedy's."""
    torch.manual_seed(0)
    fed = [torch.randint(3, tiny.VOCABULARY - 1, (4, length)) for length in (5, 1, 3)]
    sources = [[3 + (7 * i + 11 * row) % 50 for i in range(length)] for row, length in enumerate((140, 5, 133, 61))]
    for base in (tiny.small_positions("bart", 200), tiny.seq2seq("t5")):
        for dtype in DTYPES:
            ours, theirs = (made(base.model, dtype, executor) for executor in ("native", "torch"))
            logits = native_models.teacher_forced(ours, sources, fed)
            reference = native_models.teacher_forced(theirs, sources, fed, rounded=dtype == "int8")
            for found, wanted in zip(logits, reference, strict=True):
                assert (found - wanted).abs().median() < (1e-5 if dtype == "float32" else 5e-3) * wanted.abs().max()
            model = Seq2Seq(ours, base.config, base.tokenizer, base.generation_config)
            block = CachedBlockDrafter(made(tiny.cached_drafter(base).model, dtype, "native"))
            alone = [model.generate([one], max_new_tokens=12).sequences[0] for one in sources]
            for method in (Greedy(), SpecDec(block, 4), Lookup(4)):
                assert model.generate(sources, method, max_new_tokens=12, batch_size=4).sequences == alone
