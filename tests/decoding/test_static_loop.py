"""Iterations over fixed tensors write what the loop over growing ones writes, and are such as can be captured."""

import copy
import gc
import time
import weakref

import pytest
import tiny
import torch
from decoding.replay import Switching
from torch.utils._python_dispatch import TorchDispatchMode

from spec2seq import AdaptiveLength, Assisted, FixedLength, Greedy, Rollback, Sample, Seq2Seq, SpecDec, Speculative
from spec2seq.decoding import acceptance, costs, static_loop
from spec2seq.decoding.graphs import Graphs
from spec2seq.decoding.loop import Engine
from spec2seq.decoding.static_iteration import Shape, iterate
from spec2seq.decoding.static_loop import StaticLoop, up

CAP = 20


def fixed(model: Seq2Seq, dtype: torch.dtype = torch.float64) -> Seq2Seq:
    """The same model, decoded over fixed tensors as on a GPU."""
    verifier = copy.copy(model.model) if dtype == model.model.dtype else copy.deepcopy(model.model).to(dtype)
    verifier.graphs = True
    return Seq2Seq(verifier, model.config, None, model.generation_config)


def methods(model: Seq2Seq) -> dict:
    block, none = tiny.cached_drafter(model, shortlist=40), tiny.cached_drafter(model, hidden_layers=(), follow_width=0)
    return {
        "greedy": Greedy(), "specdec": SpecDec(block, 3), "whole blocks": SpecDec(block, 5), "one": SpecDec(block, 1),
        "no states": SpecDec(none, 4), "relaxed": SpecDec(block, 4, beta=20, tau=6.0),
        "rollback": Speculative(block, FixedLength(4), Rollback(6.0)),
    }  # fmt: skip


NAMES = ["greedy", "specdec", "whole blocks", "one", "no states", "relaxed", "rollback"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_the_same_tokens_and_counts(family, name, batch_size):
    """Rows of all lengths, more than there are slots; some end, some come to the cap."""
    model = tiny.seq2seq(family)
    sources, method = tiny.sources(model, 17, 4), methods(model)[name]
    wanted = model.generate(sources, method, max_new_tokens=CAP, batch_size=batch_size, trace=True)
    found = fixed(model).generate(sources, method, max_new_tokens=CAP, batch_size=batch_size, trace=True)
    assert found.sequences == wanted.sequences
    assert [row.trace for row in found.rows] == [row.trace for row in wanted.rows]
    lengths = {len(row) for row in wanted.sequences}
    assert CAP in lengths and len(lengths) > 3
    for count in ("verifier_calls", "verifier_passes", "drafted", "accepted", "drafted_at", "accepted_at"):
        assert getattr(found.stats, count) == getattr(wanted.stats, count), count
    assert (found.stats.drafted > 0) is (name != "greedy")
    if name in ("relaxed", "rollback"):
        assert 0.1 < found.stats.acceptance < 0.9


@pytest.mark.parametrize("name", ["greedy", "specdec"])
def test_in_float32_too(family, name):
    model = tiny.seq2seq(family)
    method = methods(model)[name]
    if method.drafter is not None:
        method = SpecDec(type(method.drafter)(copy.deepcopy(method.drafter.model).float()), 3)
    single = Seq2Seq(copy.deepcopy(model.model).float(), model.config, None, model.generation_config)
    sources = tiny.sources(model, 9, 4)
    wanted = single.generate(sources, method, max_new_tokens=CAP, batch_size=4).sequences
    assert fixed(model, torch.float32).generate(sources, method, max_new_tokens=CAP, batch_size=4).sequences == wanted


@pytest.mark.parametrize("name", ["greedy", "specdec"])
def test_the_end_token_of_the_generation_config_ends_rows(family, name):
    """Where it is not that of the model's own config; a loop that served another before may be taken."""
    model, sources = tiny.seq2seq(family), tiny.sources(tiny.seq2seq(family), 9, 4)
    written = fixed(model).generate(sources, max_new_tokens=CAP, batch_size=4).sequences
    other = copy.deepcopy(model.generation_config)
    other.eos_token_id = max(written, key=len)[1]
    asked = {"method": methods(model)[name], "max_new_tokens": CAP, "batch_size": 4}
    wanted = Seq2Seq(model.model, model.config, None, other).generate(sources, **asked).sequences
    mine = fixed(model)
    found = Seq2Seq(mine.model, mine.config, None, other).generate(sources, **asked).sequences
    assert found == wanted != written
    assert mine.generate(sources, **asked).sequences == written


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_precision(dtype):
    """What is kept has the model's dtype; rounding makes other tokens than float64's, so they are not compared."""
    model = tiny.seq2seq("bart")
    block = type(tiny.cached_drafter(model))(copy.deepcopy(tiny.cached_drafter(model).model).to(dtype))
    mine = fixed(model, dtype)
    for method in (Greedy(), SpecDec(block, 3), SpecDec(block, 3, beta=5, tau=3.0)):
        found = mine.generate(tiny.sources(model, 5, 4), method, max_new_tokens=CAP, batch_size=2)
        assert all(0 < len(row) <= CAP for row in found.sequences)
        loop = Engine(mine.model, method, 2).native
        assert {loop.cache.own.dtype, loop.cache.source.dtype, loop.state.features.dtype} == {dtype}
    assert found.stats.drafted > 0


@pytest.mark.parametrize("lengths", [[0, 0, 4], [5, 1, 0, 2], [0] * 9 + [3]])
@pytest.mark.parametrize("slots", [1, 4])
def test_drafts_of_changing_lengths(family, lengths, slots):
    model = tiny.seq2seq(family)
    method = Speculative(tiny.cached_drafter(model), AdaptiveLength(), Rollback(6.0))
    sources = tiny.sources(model, 9, 5)
    found = []
    for verifier in (model.model, fixed(model).model):
        engine = Engine(verifier, method, slots)
        engine.chooser = Switching(lengths)
        for source in sources:
            engine.submit(source, CAP)
        rows = {}
        while engine.busy:
            rows |= {completion.id: (completion.tokens, completion.counts.accepted_at) for completion in engine.step()}
        found.append(rows)
    assert isinstance(engine.native, StaticLoop)
    assert found[0] == found[1]


def test_rows_leave_enter_and_are_cancelled(family):
    """More slots are rounded up to than there are rows; who left goes on in its slot without harm."""
    model = tiny.seq2seq(family)
    sources, method = tiny.sources(model, 16, 6, longest=40), SpecDec(tiny.cached_drafter(model), 4)
    caps = [3 + 5 * number % 19 for number in range(len(sources))]
    found = []
    for verifier in (model.model, fixed(model).model):
        engine, rows = Engine(verifier, method, 5), {}
        for source, cap in zip(sources[:9], caps, strict=False):
            engine.submit(source, cap)
        for number in range(200):
            rows |= {completion.id: completion.tokens for completion in engine.step()}
            if number in (2, 3, 4):
                engine.cancel(number)
            if number in (4, 12):
                for source, cap in zip(sources[9:], caps[9:], strict=False):
                    engine.submit(source, cap)
        assert not engine.busy
        found.append(rows)
    assert found[0] == found[1] and len(found[0]) >= 20


def test_what_a_loop_keeps_serves_the_next_engine_and_goes_with_the_model():
    model = tiny.seq2seq("marian")
    mine, method = fixed(model), SpecDec(tiny.cached_drafter(model), 3)
    sources = tiny.sources(model, 6, 8)
    wanted = model.generate(sources, method, max_new_tokens=CAP).sequences
    first = Engine(mine.model, method, 3).native
    gc.collect()
    second = Engine(mine.model, method, 4)
    assert second.native is first and first.rows.slots == 4
    beside = Engine(mine.model, method, 2)  # while the first is at work
    assert beside.native is not first
    greedy = Engine(mine.model, Greedy(), 4).native
    assert greedy is not first and greedy.session is None
    del second, beside
    gc.collect()
    assert mine.generate(sources, method, max_new_tokens=CAP, batch_size=2).sequences == wanted
    larger = Engine(mine.model, method, 6).native
    assert larger.rows.slots == 8 and larger is not first
    assert mine.generate(sources, method, max_new_tokens=CAP, batch_size=3).sequences == wanted
    verifier, loop = weakref.ref(mine.model), weakref.ref(larger)
    del mine, first, larger, greedy
    gc.collect()
    assert verifier() is None and loop() is None


def test_weights_that_moved_get_new_graphs():
    model = tiny.seq2seq("bart")
    mine = fixed(model, torch.float32)
    first = Engine(mine.model, Greedy(), 2).native
    mine.model.double()
    assert Engine(mine.model, Greedy(), 2).native is not first
    wanted = model.generate(tiny.sources(model, 3), max_new_tokens=CAP).sequences
    assert mine.generate(tiny.sources(model, 3), max_new_tokens=CAP).sequences == wanted


class Operators(TorchDispatchMode):
    """Names and shapes of all operators."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        def shape(value):
            if isinstance(value, torch.Tensor):
                return tuple(value.shape), value.stride()
            return [shape(one) for one in value] if isinstance(value, (list, tuple)) else value

        self.seen.append((func._schema.name, shape(args)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_the_shapes_of_an_iteration_do_not_change(family, name, monkeypatch):
    monkeypatch.setattr(acceptance, "likeliest", lambda logits: logits.argmax(-1))  # as on a GPU
    model = tiny.seq2seq(family)
    method = methods(model)[name]
    engine = Engine(fixed(model).model, method, 4)
    for source in tiny.sources(model, 8, 9):
        engine.submit(source, CAP)
    for _ in range(3):
        engine.step()
    loop, k = engine.native, engine.method.length.cap if method.drafter else 0
    shape, seen = Shape(4, 64, 64, k, k + 1), []
    loop._reserve(shape)
    for _ in range(4):
        with Operators() as operators:
            iterate(engine.verifier, loop.state, shape, method.acceptance)
        seen.append(operators.seen)
    assert len(seen[0]) > 50
    assert seen[1:] == seen[:1] * 3


class Recorded(Graphs):
    """Stands in for the CUDA calls: a graph is a call that is counted."""

    def __init__(self, device):
        super().__init__(device)
        self.captures, self.warm, self.captured, self.replayed = True, 0, 0, 0

    def _aside(self, function):
        self.warm += 1
        return function()

    def _capture(self, function):
        self.captured += 1
        result = []

        def replay():
            self.replayed += 1
            result[:] = [function()]

        return replay, _Late(result)


class _Late:
    def __init__(self, result):
        self.result = result
        self.device = torch.device("cpu")

    def __getitem__(self, rows):
        return self.result[0][rows]


def test_a_shape_is_captured_when_it_comes_again_and_the_largest_never(monkeypatch):
    model = tiny.seq2seq("marian")
    mine, method = fixed(model), SpecDec(tiny.cached_drafter(model), 3)
    sources = tiny.sources(model, 7, 4)
    monkeypatch.setattr(static_loop, "Graphs", Recorded)
    wanted = model.generate(sources, method, max_new_tokens=CAP, batch_size=4)
    found = mine.generate(sources, method, max_new_tokens=CAP, batch_size=4)
    assert found.sequences == wanted.sequences
    graphs = Engine(mine.model, method, 4).native.graphs
    assert graphs.warm == len(graphs.made) and 0 < graphs.captured <= graphs.warm
    assert graphs.warm + graphs.replayed == found.stats.verifier_passes
    before = graphs.captured
    assert mine.generate(sources, method, max_new_tokens=CAP, batch_size=4).sequences == wanted.sequences
    assert graphs.warm == len(graphs.made) and graphs.captured <= before + graphs.warm
    monkeypatch.setattr(static_loop, "LARGEST", Shape(2, 64, 64, 8, 8))
    monkeypatch.setattr(Recorded, "_capture", lambda *given: pytest.fail("captured"))
    graphs.forget()
    assert mine.generate(sources[:4], method, max_new_tokens=4, batch_size=4).sequences
    assert all(shape.rows <= 2 for shape, *_ in graphs.made)


def test_a_capture_that_fails_leaves_the_loop_as_it_is(monkeypatch):
    model = tiny.seq2seq("marian")
    mine, sources = fixed(model), tiny.sources(model, 7, 4)
    asked: list[None] = []

    class Failing(Recorded):
        def _capture(self, function):
            asked.append(None)
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(static_loop, "Graphs", Failing)
    wanted = model.generate(sources, max_new_tokens=CAP, batch_size=4).sequences
    with pytest.warns(UserWarning, match="no CUDA graph of .*Shape.rows=4.*: operation not permitted$") as warned:
        for _ in range(3):
            assert mine.generate(sources, max_new_tokens=CAP, batch_size=4).sequences == wanted
    graphs = Engine(mine.model, Greedy(), 4).native.graphs
    assert len(warned) == len(asked) == len(graphs.failed) > 0 and graphs.settled


def test_what_graphs_cost_is_no_part_of_an_iteration(monkeypatch):
    """The first two calls of a size are slow; an adaptive length reckons with the others."""

    class Slow(Recorded):
        def run(self, key, function):
            result = super().run(key, function)
            if not self.settled:
                time.sleep(0.1)
            return result

    model = tiny.seq2seq("marian")
    monkeypatch.setattr(static_loop, "Graphs", Slow)
    found = costs.measure(fixed(model).model, SpecDec(tiny.cached_drafter(model)), [], 2)
    assert found.rest.keys() == {0, 1, 2, 3, 5} and max(found.rest.values()) < 0.1
    assert not any(found.drafting.values())


def test_a_tensor_that_grows_drops_the_graphs(monkeypatch):
    model = tiny.seq2seq("t5")
    mine = fixed(model)
    monkeypatch.setattr(static_loop, "Graphs", Recorded)
    engine = Engine(mine.model, Greedy(), 1)
    for source, cap in (([5, 6, 1], 4), ([7, 8, 1], 4), ([5] * 70 + [1], 200)):
        engine.submit(source, cap)
        while engine.busy:
            engine.step()
    shapes = {shape for shape, *_ in engine.native.graphs.made}
    assert {shape.source for shape in shapes} == {80}  # none of those before is left
    assert {shape.horizon for shape in shapes} <= {64, 128, 256}


@pytest.mark.parametrize("method", ["sample", "assisted", "confidence", "paper", "off"])
def test_what_it_cannot_do_runs_as_before(method):
    model = tiny.seq2seq("bart")
    mine, cached = fixed(model), tiny.cached_drafter(model)
    chosen = {
        "sample": Sample(seed=1), "assisted": Assisted(tiny.noisy_copy(model, 0.1).drafter(), 3),
        "confidence": Speculative(cached, AdaptiveLength(4, confidence=0.1)),
        "paper": SpecDec(tiny.paper_drafter(model), 3),
    }.get(method, Greedy())  # fmt: skip
    mine.model.graphs = method != "off"
    assert Engine(mine.model, chosen, 2).native is None


def test_sizes_go_up_in_steps():
    assert [up(value) for value in (1, 2, 3, 4, 5, 8, 9, 127, 128)] == [1, 2, 4, 4, 8, 8, 16, 128, 128]
    assert [up(value, 64) for value in (1, 64, 65, 128, 129)] == [64, 64, 128, 128, 256]
    assert [up(value, 64, 4) for value in (3, 64, 65, 80, 81, 400, 512)] == [64, 64, 80, 80, 96, 448, 512]
