"""What iterations take: measured in the engine, kept on disk, put on lines between the measurements."""

import copy
import gc
import json

import pytest
import tiny
import torch

from spec2seq import AdaptiveLength, Greedy, Lookup, Sample, SpecDec, Speculative
from spec2seq.decoding import costs, lengths
from spec2seq.decoding.costs import Costs
from spec2seq.decoding.loop import Engine
from spec2seq.decoding.native_loop import NativeLoop
from spec2seq.models import executor, native

OF_ITERATIONS = costs.of_iterations


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch, made_up_costs):
    """The real thing, with nothing known yet."""
    monkeypatch.setattr(costs, "of_iterations", OF_ITERATIONS)
    monkeypatch.setattr(costs, "_known", {})
    monkeypatch.setattr(costs, "cache_folder", lambda: tmp_path / "spec2seq")
    return tmp_path / "spec2seq"


def of(model, drafter, slots=1, cap=16, processors=None, ends=1) -> Costs:
    return costs.of_iterations(model.model, Speculative(drafter, AdaptiveLength(cap)), processors or [], slots, ends)


def measured(model, drafter, slots=1, cap=16) -> Costs:
    return costs.measure(model.model, Speculative(drafter, AdaptiveLength(cap)), [], slots)


def test_between_measurements_and_beyond():
    found = Costs({1: 1.0, 3: 3.0}, {0: 10.0, 2: 12.0, 4: 11.0, 8: 16.0}, 0.5)
    assert found.iteration(0, 1.0) == 10.0
    assert found.iteration(1, 1.0) == 1.0 + 11.0
    assert found.iteration(4, 1.0) == 4.0 + 12.0  # more tokens never take less
    assert found.iteration(12, 1.0) == 12.0 + 20.0
    assert found.iteration(4, 0.5) == 2.0 + 12.0
    assert found.iteration(4, 0.0) == 1.0 + 10.0  # to find nothing to draft is work too
    assert Costs({}, {0: 2.0}).iteration(5, 1.0) == 2.0


def drafters(model):
    return {
        "little": tiny.noisy_copy(model, 0.02).drafter(),
        "lookup": Lookup().drafter,
        "block": tiny.cached_drafter(model),
    }


@pytest.mark.parametrize("kind", ["little", "lookup", "block"])
@pytest.mark.parametrize("slots", [1, 3])
def test_every_length_is_measured(kind, slots):
    model = tiny.seq2seq("marian")
    drafter = drafters(model)[kind]
    cap = drafter.longest or 5
    found = measured(model, drafter, slots, cap)
    assert set(found.rest) == {k for k in costs.LENGTHS if k < cap} | {cap}
    assert set(found.drafting) == set(found.rest) - {0}
    assert min(found.rest.values()) > 0 and (found.reading > 0) == (kind == "little")


@pytest.mark.skipif(bool(native.unavailable()), reason=native.unavailable())
def test_copies_are_verified_though_made_up_text_has_none():
    model = copy.deepcopy(tiny.seq2seq("t5"))
    executor.prepare(model.model.float(), "float32", "native")
    found = measured(model, Lookup().drafter, 1, 8)
    assert set(found.rest) == {0, 1, 2, 3, 5, 8} and not found.drafting


def test_where_positions_are_few():
    model = tiny.small_positions("bart", 6)
    found = of(model, Lookup().drafter)
    assert {0, 1} <= set(found.rest) and 16 not in found.rest
    assert found.iteration(16, 1.0) >= found.iteration(0, 1.0)


def test_a_slow_model_is_not_measured_for_long(monkeypatch):
    monkeypatch.setattr(costs, "BUDGET", 0.0)
    model = tiny.seq2seq("bart")
    assert set(measured(model, model.drafter()).rest) == {0, costs.FIRST}


def test_with_processors_and_sampling():
    """The loop that is measured is the one that will run."""
    model = tiny.seq2seq("marian")
    passed = []
    method = Sample(drafter=model.drafter(), length=AdaptiveLength(3))
    found = costs.measure(model.model, method, [lambda logits, prefix: passed.append(1) or logits], 1)
    assert passed and set(found.rest) == {0, 1, 2, 3}


def test_kept_on_disk(home, monkeypatch):
    model, other = tiny.seq2seq("bart"), tiny.seq2seq("marian")
    made: list[tuple] = []
    monkeypatch.setattr(costs, "measure", lambda *given: made.append(given) or Costs({1: 0.5}, {0: 1.0, 1: 1.5}, 0.1))
    first = of(model, model.drafter(), 2)
    assert of(model, model.drafter(), 2) == first and len(made) == 1
    (file,) = (home / "costs").iterdir()
    assert json.loads(file.read_text()) == {"drafting": {"1": 0.5}, "rest": {"0": 1.0, "1": 1.5}, "reading": 0.1}
    assert file.parent.stat().st_mode & 0o077 == 0
    of(model, model.drafter(), 4)  # another batch size
    of(model, model.drafter(), 2, ends=2)  # another loop in the compiled executor
    of(model, Lookup().drafter, 2)  # another drafter
    of(other, model.drafter(), 2)  # another verifier
    of(model, model.drafter(), 2, processors=[lambda logits, prefix: logits])  # another loop
    of(model, tiny.noisy_copy(model, 0.02).drafter(), 2)  # one that reads by itself
    torch.set_num_threads(2)
    of(model, model.drafter(), 2)
    torch.set_num_threads(1)
    model.model.graphs = True
    of(model, model.drafter(), 2)
    model.model.graphs = False
    assert len(made) == 9
    for broken in ("{broken", '{"drafting": {}, "rest": {}, "reading": 0}', "[]"):
        file.write_text(broken)
        costs._known.clear()
        made.clear()
        assert of(model, model.drafter(), 2) == first and len(made) == 1
        assert json.loads(file.read_text())["rest"] == {"0": 1.0, "1": 1.5}
    costs._known.clear()
    assert of(model, model.drafter(), 2) == first and len(made) == 1  # a new process reads it
    assert len(list(file.parent.iterdir())) == 9  # nothing half-written


def test_a_home_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(costs, "cache_folder", lambda: tmp_path / "file")
    model = tiny.seq2seq("bart")
    found = of(model, model.drafter(), 1, 2)
    assert found.rest[0] > 0 and of(model, model.drafter(), 1, 2) is found


def test_only_an_adaptive_length_is_measured_for(monkeypatch):
    model = tiny.seq2seq("bart")
    asked = []
    made_up = Costs({1: 0.1}, {0: 1.0, 1: 1.1})
    monkeypatch.setattr(
        costs, "of_iterations", lambda _, method, *rest: asked.append((rest[1], method.length.cap)) or made_up
    )
    sources, block = tiny.sources(model, 3), tiny.cached_drafter(model)
    for method in (Greedy(), Lookup(3), SpecDec(block, 2)):
        model.generate(sources, method, max_new_tokens=5)
    assert not asked
    method = Speculative(block, AdaptiveLength(16))
    for batch_size in (1, 2, 1, 3):
        model.generate(sources, method, max_new_tokens=5, batch_size=batch_size)
    assert asked == [(size, block.longest) for size in (1, 2, 2)]  # powers of two
    asked.clear()
    method = Speculative(block, AdaptiveLength(16))
    model.generate([], method)
    assert not list(model.stream([], method)) and not asked
    for batch_size in (512, 2):  # never more rows than there are
        assert len(list(model.stream(sources, method, max_new_tokens=5, batch_size=batch_size))) == 3
    assert asked == [(2, block.longest)] * 2


@pytest.mark.skipif(bool(native.unavailable()), reason=native.unavailable())
def test_what_is_measured_is_what_runs(monkeypatch):
    """With several end tokens iterations run over tensors."""
    model, made = copy.deepcopy(tiny.seq2seq("marian")), []
    executor.prepare(model.model.float(), "float32", "native")
    monkeypatch.setattr(costs, "BUDGET", 0.0)
    init = Engine.__init__

    def recorded(engine, *given, **settings):
        init(engine, *given, **settings)
        made.append(type(engine.native))

    monkeypatch.setattr(Engine, "__init__", recorded)
    for ends in (0, [0, 7]):
        model.generation_config.eos_token_id = ends
        made.clear()
        model.generate([[5, 6, 0]], method := Lookup(), max_new_tokens=4)
        assert len(made) == 2 and made[0] is made[1] is (NativeLoop if ends == 0 else type(None))
    assert method.chooser(model.model, 1, [], 2) is not method.chooser(model.model, 1, [], 1)


@pytest.mark.parametrize("before", [0, 16])
def test_a_full_batch_is_one_that_was_asked_for(before, monkeypatch):
    """Fixed tensors have a power of two of slots, or those of an engine before: a length rule learns all the same."""
    told = []
    monkeypatch.setattr(lengths._Adaptive, "took", lambda *given: told.append(given))
    monkeypatch.setattr(costs, "of_iterations", lambda *given: Costs({1: 0.05}, {0: 1.0, 1: 1.02}))
    model = tiny.seq2seq("marian")
    verifier, method = copy.copy(model.model), SpecDec(tiny.cached_drafter(model))
    verifier.graphs = True
    if before:
        Engine(verifier, method, before)  # which is gone at once
        gc.collect()
    engine = Engine(verifier, method, 5)
    assert engine.rows.slots == max(before, 8)
    for source in tiny.sources(model, 5, 6):
        engine.submit(source, 20)
    engine.step()
    assert len(told) == 1
