"""The engine over the compiled executor: lossless is exact, in float32 and int8, without ties."""

import copy
import ctypes
import subprocess
import sys
import warnings

import native_models
import pytest
import tiny
import torch
import transformers
from native_models import DTYPES, METHODS, SHORTLIST, Alternating, block_drafter, little_model, needs_compiler
from torch.profiler import ProfilerActivity, profile

from spec2seq import Assisted, Beam, BiLD, Greedy, Lookup, NgramLookup, Seq2Seq, SpecDec, runner
from spec2seq.decoding import costs, drafters, lengths, lookup, native_loop
from spec2seq.decoding.drafters import LittleSession
from spec2seq.decoding.lengths import FixedLength
from spec2seq.decoding.methods import Speculative
from spec2seq.decoding.native_loop import NativeLoop
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.kernels import build, library
from spec2seq.models import executor, loading, native
from spec2seq.models.native_drafter import NativeChooser


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_lossless_is_greedy(family, dtype, batch_size):
    model = native_models.seq2seq(family, dtype)
    sources = tiny.sources(tiny.transformers_model(family), 6)
    greedy = model.generate(sources, Greedy(), max_new_tokens=20, batch_size=1).sequences
    little = tiny.noisy_copy(native_models.seq2seq(family, "float32", "torch"), 0.3)
    for method in (
        SpecDec(block_drafter(family, dtype), 4), Assisted(little.drafter(), 3), Lookup(4),
        SpecDec(block_drafter(family, dtype, shortlist=40, follow_width=0), 3),
    ):  # fmt: skip
        out = model.generate(sources, method, max_new_tokens=20, batch_size=batch_size)
        assert out.sequences == greedy
        assert out.stats.drafted or isinstance(method.drafter, NgramLookup)  # it may find nothing


@needs_compiler
@pytest.mark.parametrize(("dtype", "batch_size"), [("float32", 1), ("int8", 3)])
@pytest.mark.parametrize("method", METHODS)
def test_an_iteration_in_one_call_is_the_one_over_tensors(family, dtype, method, batch_size, monkeypatch):
    model = native_models.seq2seq(family, dtype)
    sources = tiny.sources(tiny.transformers_model(family), 7)
    block = block_drafter(family, dtype, shortlist=40, hidden_layers=(1, 2))
    little = little_model(family, dtype)
    runs = []
    for in_one_call in (True, False):
        if not in_one_call:
            monkeypatch.setattr(NativeLoop, "can_run", lambda *given: False)
        made = METHODS[method](block, little)
        out = model.generate(sources, made, max_new_tokens=17, batch_size=batch_size, trace=True)
        counts = {name: value for name, value in vars(out.stats).items() if name not in ("seconds", "phases")}
        runs.append((out.sequences, [row.trace for row in out.rows], counts))
    assert runs[0] == runs[1]


@needs_compiler
def test_a_rule_that_is_off_probes_after_as_many_iterations_in_one_call(monkeypatch):
    """Rows end before all the iterations have run that a call might have had."""
    seconds = costs.Costs({1: 2.5, 2: 5.0}, {0: 1.0, 1: 1.02})  # drafting cannot pay
    monkeypatch.setattr(costs, "of_iterations", lambda *given: seconds)
    monkeypatch.setattr(lengths._Adaptive, "PROBES", 0.2)  # a look after a hundred iterations
    model, little = native_models.seq2seq("marian", "float32"), little_model("marian", "float32")
    sources, passes = tiny.sources(tiny.transformers_model("marian"), 120), []
    for at_once in (16, 1):
        monkeypatch.setattr(runner, "AT_ONCE", at_once)
        stats = model.generate(sources, Assisted(little), max_new_tokens=20, batch_size=4).stats
        passes.append((stats.verifier_passes, stats.drafter_passes))
    assert passes[0] == passes[1] and 0 < passes[0][1] < passes[0][0] / 5


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_draft_in_one_call_is_the_one_over_tensors(family, dtype, batch_size, monkeypatch):
    model = native_models.seq2seq(family, dtype)
    sources = tiny.sources(tiny.transformers_model(family), 7)
    drafter = little_model(family, dtype)
    for make in (  # anew for each run: what an adaptive rule has learned stays with its method
        lambda: Assisted(drafter, 3), lambda: Speculative(drafter, Alternating()), lambda: BiLD(drafter, 0.05, 2.0),
        lambda: BiLD(drafter, None, 4.0, 3), lambda: BiLD(drafter, 0.03, 1.0, starts="verifier", verify_tail=True),
        lambda: BiLD(drafter.scoring(SHORTLIST), 0.06, 2.0),
    ):  # fmt: skip
        runs = []
        for in_one_call in (True, False):
            with monkeypatch.context() as patch:
                patch.setattr(NativeLoop, "can_run", lambda *given: False)
                if not in_one_call:
                    patch.setattr(LittleSession, "_draft_native", LittleSession._draft_over_tensors)
                out = model.generate(sources, make(), max_new_tokens=17, batch_size=batch_size, trace=True)
            counts = {name: value for name, value in vars(out.stats).items() if name not in ("seconds", "phases")}
            runs.append((out.sequences, [row.trace for row in out.rows], counts))
        assert runs[0] == runs[1]


@needs_compiler
@pytest.mark.parametrize("kind", ["block", "little", "lookup"])
def test_calls_and_operators_of_a_drafted_iteration(kind, monkeypatch):
    """A guard against slow paths that needs no clock."""
    model, calls, call = native_models.seq2seq("marian", "int8"), [], native.call
    method = {
        "block": SpecDec(block_drafter("marian", "int8"), 2), "little": Assisted(little_model("marian", "int8"), 2),
        "lookup": Lookup(2),
    }[kind]  # fmt: skip
    for module in (native, native_loop, drafters, lookup):
        monkeypatch.setattr(module, "call", lambda name, *rest: calls.append(name) or call(name, *rest))
    some = tiny.sources(tiny.transformers_model("marian"), 20)
    given = [max(some, key=lambda source: len(model.generate([source], max_new_tokens=40).sequences[0]))]

    def run(tokens: int) -> tuple[int, int]:
        calls.clear()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            stats = model.generate(given, method, max_new_tokens=tokens, batch_size=1).stats
        iterate = calls.count("spec2seq_iterate")
        assert iterate <= 2 + stats.verifier_passes // 16  # 16 in a call; the last token alone, without a draft
        assert len(calls) == iterate + {"block": 3, "little": 4, "lookup": 2}[kind]  # sources are read
        return stats.verifier_passes, sum(
            event.count for event in seen.key_averages() if event.key.startswith("aten::")
        )

    run(4)
    (few, fewer), (many, more) = run(6), run(40)
    assert many > few + 2 and (more - fewer) / (many - few) <= 5, (few, fewer, many, more)  # operators, nested ones too


@needs_compiler
def test_a_row_is_what_it_is_alone_in_one_call(family):
    model = native_models.seq2seq(family, "int8")
    sources = tiny.sources(tiny.transformers_model(family), 6)
    method = SpecDec(block_drafter(family, "int8"), 4, beta=3, tau=2.0)
    together, alone = (model.generate(sources, method, max_new_tokens=15, batch_size=size).sequences for size in (4, 1))
    assert together == alone


@needs_compiler
@pytest.mark.parametrize("shape", [{}, {"shortlist": 40}, {"follow_width": 0}])
def test_the_drafter_drafts_what_pytorch_drafts(family, shape):
    sources = tiny.sources(tiny.transformers_model(family), 6)
    counts = []
    for run in ("native", "torch"):
        model = native_models.seq2seq(family, "float32", run)
        method = SpecDec(block_drafter(family, "float32", run, **shape), 4)
        stats = model.generate(sources, method, max_new_tokens=20, batch_size=2).stats
        counts.append((stats.accepted, stats.drafted, stats.verifier_passes))
    assert counts[0] == counts[1]


@needs_compiler
def test_the_choice_of_tokens_is_pytorchs():
    for dtype in DTYPES:
        verifier = native_models.model("marian", dtype)
        drafter = block_drafter("marian", dtype, shortlist=40).model
        head = drafter.guess_head(verifier)
        states, last = torch.randn(3, 4, 32), torch.tensor([5, 9, 30])
        tokens, logits = NativeChooser(drafter, verifier, head)(states, last)
        wanted, scored = drafter.choose(verifier, head, states, last, lambda logits, step: logits.argmax(-1))
        assert torch.equal(tokens, wanted) and last.tolist() == [5, 9, 30]
        torch.testing.assert_close(logits, scored, atol=0.05 if dtype == "int8" else 1e-4, rtol=1e-3)


@needs_compiler
@pytest.mark.parametrize("method", ["beams", "exact"])
def test_pytorchs_default_dtype_is_nothing_to_c(method):
    """Transformers sets that of the whole process while it loads."""
    model = native_models.seq2seq("marian", "float32")
    given = block_drafter("marian", "float32"), little_model("marian", "float32")
    sources, runs = tiny.sources(tiny.transformers_model("marian"), 12), []
    for dtype in (torch.float32, torch.float64):  # of which C would fill half; narrower ones it would write beyond
        torch.set_default_dtype(dtype)
        try:
            chosen = Beam(3) if method == "beams" else METHODS[method](*given)
            out = model.generate(sources, chosen, max_new_tokens=16, batch_size=5)
        finally:
            torch.set_default_dtype(torch.float32)
        runs.append((out.sequences, out.stats.accepted))
    assert runs[0] == runs[1]


def test_without_a_compiler_pytorch_runs(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr(library, "find", library.find.__wrapped__)
    assert "no-such-compiler" in native.unavailable()
    for dtype in DTYPES:
        model = copy.deepcopy(tiny.seq2seq("marian").model).float()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            executor.prepare(model, dtype, "auto")
        assert model.decoder.native is None
        assert ("no-such-compiler" in "".join(str(one.message) for one in seen)) == (dtype == "int8")
        with pytest.raises(Spec2SeqError, match="no-such-compiler"):
            executor.prepare(copy.deepcopy(tiny.seq2seq("marian").model).float(), dtype, "native")


@needs_compiler
def test_a_compiler_with_arguments(monkeypatch, tmp_path):
    (program,) = build._compiler()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-fsyntax-only"))  # seconds less
    names = []
    for arguments in ("-g0", "-g0 -DOTHER"):
        monkeypatch.setenv("CC", f"'{program}' {arguments}")
        assert build._compiler() == [program, *arguments.split()]
        names.append(build.build().name)
    assert names[0] != names[1]
    monkeypatch.setenv("CC", "cc 'unclosed")
    with pytest.raises(build.Unavailable, match="CC is .*: No closing quotation"):
        build.build()


def test_a_broken_compiler_is_named(monkeypatch, tmp_path):
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(build.Unavailable, match="it is broken"):
        build.build()
    assert not list((tmp_path / "spec2seq").iterdir())


@needs_compiler
def test_two_processes_compile_at_once(tmp_path):
    code = "from spec2seq.kernels.build import build; print(build())"
    environment = {**build.os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    both = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=-1, text=True) for _ in range(2)]
    paths = {process.communicate()[0].strip() for process in both}
    assert len(paths) == 1 and len(list((tmp_path / "spec2seq").iterdir())) == 1
    assert ctypes.CDLL(paths.pop()).spec2seq_size() > 0


def test_wrong_executors_are_refused():
    with pytest.raises(UsageError, match="auto, native, torch"):
        executor.check("float32", "fast")
    with pytest.raises(UsageError, match="float32 and int8"):
        executor.check("bfloat16", "native")


@needs_compiler
def test_int8_keeps_the_fingerprint():
    assert native_models.seq2seq("marian", "int8").fingerprint() == tiny.seq2seq("marian").fingerprint()


@needs_compiler
def test_an_int8_model_of_the_hub(monkeypatch, tmp_path):
    base = native_models.seq2seq("marian", "int8", "torch")
    base.save_pretrained(tmp_path / "model")

    def cached(name, file, **more):
        return str(tmp_path / "model" / file) if name == "who/model" else None

    monkeypatch.setattr(transformers.utils, "cached_file", cached)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda name: base.config)
    monkeypatch.setattr(transformers.GenerationConfig, "from_pretrained", lambda name: base.generation_config)
    model, _, said = loading.load_model("who/model", "int8")
    sources = tiny.sources(tiny.transformers_model("marian"), 3)
    found = Seq2Seq(model, base.config, None, said).generate(sources, max_new_tokens=9).sequences
    assert found == base.generate(sources, max_new_tokens=9).sequences
    with pytest.raises(UsageError, match="who/model: its weights are int8"):
        loading.load_model("who/model", "float32")


def test_fixed_lengths_at_a_batch_of_different_rows():
    """Rows of one batch that have different numbers of pending tokens and drafted ones."""
    model = native_models.seq2seq("t5", "int8")
    sources = tiny.sources(tiny.transformers_model("t5"), 8)
    little = tiny.noisy_copy(native_models.seq2seq("t5", "float32", "torch"), 0.3)
    method = Assisted(little.drafter(), 5)
    assert isinstance(method.length, FixedLength)
    greedy = model.generate(sources, Greedy(), max_new_tokens=15, batch_size=1).sequences
    assert model.generate(sources, method, max_new_tokens=15, batch_size=8).sequences == greedy


@needs_compiler
def test_an_int8_folder_is_loaded_as_it_was_saved(family, tmp_path):
    made = native_models.seq2seq(family, "int8")
    made.tokenizer = tiny.tokenizer(tiny.transformers_model(family))
    made.save_pretrained(tmp_path / "saved")
    loaded = Seq2Seq.from_pretrained(tmp_path / "saved", "int8")
    assert loaded.model.decoder.native is not None
    assert loaded.fingerprint() == made.fingerprint()
    sources = tiny.sources(tiny.transformers_model(family), 5)
    assert loaded.generate(sources, max_new_tokens=20).sequences == made.generate(sources, max_new_tokens=20).sequences
    with pytest.raises(UsageError, match="int8"):
        Seq2Seq.from_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "int8.safetensors").write_bytes(b"broken")
    with pytest.raises(Spec2SeqError, match="does not fit"):
        Seq2Seq.from_pretrained(tmp_path / "saved", "int8")
