"""What iterations take: measured in the engine, kept on disk, put on lines between the measurements."""

import copy
import json

import pytest
import tiny
import torch

from spec2seq import AdaptiveLength, Greedy, Lookup, SpecDec, Speculative
from spec2seq.decoding import costs
from spec2seq.decoding.costs import Costs
from spec2seq.kernels.build import cache_folder
from spec2seq.models import executor, native


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


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
    return {"little": model.drafter(), "lookup": Lookup().drafter, "block": tiny.cached_drafter(model)}


@pytest.mark.parametrize("kind", ["little", "lookup", "block"])
@pytest.mark.parametrize("slots", [1, 3])
def test_every_length_is_measured(kind, slots):
    model = tiny.seq2seq("marian")
    drafter = drafters(model)[kind]
    cap = drafter.longest or 5
    found = costs.measure(model.model, drafter, slots, cap)
    assert set(found.rest) == {k for k in costs.LENGTHS if k < cap} | {cap}
    assert set(found.drafting) == set(found.rest) - {0}
    assert min(found.rest.values()) > 0 and (found.reading > 0) == (kind == "little")


@pytest.mark.skipif(bool(native.unavailable()), reason=native.unavailable())
def test_copies_are_verified_though_made_up_text_has_none():
    model = copy.deepcopy(tiny.seq2seq("t5"))
    executor.prepare(model.model.float(), "float32", "native")
    found = costs.measure(model.model, Lookup().drafter, 1, 8)
    assert set(found.rest) == {0, 1, 2, 4, 8} and not found.drafting


def test_where_positions_are_few(home):
    model = tiny.small_positions("bart", 6)
    found = costs.of_iterations(model.model, Lookup().drafter, 1, 16)
    assert {0, 1} <= set(found.rest) and 16 not in found.rest
    assert found.iteration(16, 1.0) >= found.iteration(0, 1.0)


def test_a_slow_model_is_not_measured_for_long(monkeypatch):
    monkeypatch.setattr(costs, "BUDGET", 0.0)
    model = tiny.seq2seq("bart")
    assert set(costs.measure(model.model, model.drafter(), 1, 16).rest) == {0, 1}


def test_kept_on_disk(home, monkeypatch):
    model = tiny.seq2seq("bart")
    measured = []
    monkeypatch.setattr(
        costs, "measure", lambda *given: measured.append(given) or Costs({1: 0.5}, {0: 1.0, 1: 1.5}, 0.1)
    )
    first = costs.of_iterations(model.model, model.drafter(), 2, 4)
    assert costs.of_iterations(model.model, model.drafter(), 2, 4) == first and len(measured) == 1
    (file,) = (cache_folder() / "costs").iterdir()
    assert json.loads(file.read_text()) == {"drafting": {"1": 0.5}, "rest": {"0": 1.0, "1": 1.5}, "reading": 0.1}
    costs.of_iterations(model.model, model.drafter(), 3, 4)  # another batch size
    costs.of_iterations(model.model, Lookup().drafter, 2, 4)  # another drafter
    costs.of_iterations(tiny.seq2seq("marian").model, model.drafter(), 2, 4)  # another verifier
    torch.set_num_threads(2)
    costs.of_iterations(model.model, model.drafter(), 2, 4)
    torch.set_num_threads(1)
    assert len(measured) == 5
    file.write_text("{broken")
    assert costs.of_iterations(model.model, model.drafter(), 2, 4) == first and len(measured) == 6
    assert json.loads(file.read_text())["rest"] == {"0": 1.0, "1": 1.5}
    assert len(list(file.parent.iterdir())) == 5  # nothing half-written


def test_a_home_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    model = tiny.seq2seq("bart")
    assert costs.of_iterations(model.model, model.drafter(), 1, 2).rest[0] > 0


def test_only_an_adaptive_length_is_measured_for(monkeypatch):
    model = tiny.seq2seq("bart")
    asked = []
    monkeypatch.setattr(
        costs, "of_iterations", lambda *given: asked.append(given[2:]) or Costs({1: 0.1}, {0: 1.0, 1: 1.1})
    )
    sources, block = tiny.sources(model, 3), tiny.cached_drafter(model)
    for method in (Greedy(), Lookup(3), SpecDec(block, 2)):
        model.generate(sources, method, max_new_tokens=5)
    assert not asked
    method = Speculative(block, AdaptiveLength(16))
    for batch_size in (1, 2, 1, 3):
        model.generate(sources, method, max_new_tokens=5, batch_size=batch_size)
    assert asked == [(size, block.longest) for size in (1, 2, 4)]
