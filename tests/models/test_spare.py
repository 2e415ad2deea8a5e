"""The tensors that a model keeps of its last cache."""

import copy
import pickle

import native_models
import pytest
import tiny
import torch
from native_models import DTYPES, needs_compiler

from spec2seq import Assisted, Beam, Greedy
from spec2seq.models import cache as caches

pytestmark = needs_compiler


def without(model):
    """The model with nothing kept yet."""
    model.model.spare.kept.clear()
    return model


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_next_generation_has_the_cache_of_the_last(family, dtype):
    model = without(native_models.seq2seq(family, dtype))
    sources, spare = tiny.sources(model, 6, 7), model.model.spare
    methods = (Greedy(), Assisted(model.drafter(), 3), Beam(2), Greedy())
    wanted = [model.generate(sources, method, max_new_tokens=12, batch_size=3).sequences for method in methods]
    for method, sequences in zip(methods, wanted, strict=True):
        model.generate(sources, max_new_tokens=12, batch_size=6 if isinstance(method, Beam) else 3)
        with torch.inference_mode():
            for tensor in spare.kept[0]:  # what was left there is seen by nobody
                tensor.fill_(torch.nan)
        given = spare.kept[0][0].data_ptr()
        assert model.generate(sources, method, max_new_tokens=12, batch_size=3).sequences == sequences
        assert method != Greedy() or spare.kept[0][0].data_ptr() == given  # others need more places


def test_only_for_as_many_slots_and_one_user():
    model = without(native_models.seq2seq("marian", "float32"))
    sources, spare = tiny.sources(model, 6, 7), model.model.spare
    wanted = model.generate(sources, max_new_tokens=12, batch_size=3).sequences
    kept = [tensor.data_ptr() for tensor in spare.kept[0]]
    one, two = (model.engine(Greedy(), 3) for _ in range(2))
    assert not spare.kept and one.cache.own.data_ptr() == kept[0] != two.cache.own.data_ptr()
    places = {}
    for engine in (one, two):
        for index, source in enumerate(sources):
            places[id(engine), engine.submit(source, 12)] = index
    found = {id(one): [None] * 6, id(two): [None] * 6}
    while one.busy or two.busy:  # in turn
        for engine in (one, two):
            for done in engine.step():
                found[id(engine)][places[id(engine), done.id]] = done.tokens
    assert list(found.values()) == [wanted, wanted]
    del one, two, engine
    assert spare.kept[0][0].shape[2] == 3
    assert model.model.new_cache(2).own.shape[4] == 0  # of other slots there is none


def test_what_is_too_large_is_not_kept(monkeypatch):
    model = without(native_models.seq2seq("t5", "float32"))
    monkeypatch.setattr(caches, "SPARE", 1000)
    model.generate(tiny.sources(model, 2), max_new_tokens=5)
    assert not model.model.spare.kept


def test_nobody_writes_to_tensors_of_inference_mode_outside_of_it():
    model = without(native_models.seq2seq("bart", "float32"))
    sources = tiny.sources(model, 1)
    model.generate(sources, max_new_tokens=5, batch_size=1)
    assert model.model.spare.kept[0][0].is_inference()
    with torch.no_grad():
        cache = model.model.new_cache(1)
        cache.reserve(3)
        cache.own.zero_()


def test_a_copy_begins_without():
    model = without(native_models.seq2seq("bart", "float32"))
    model.generate(tiny.sources(model, 2), max_new_tokens=5)
    assert model.model.spare.kept
    assert not copy.deepcopy(model.model).spare.kept
    assert not pickle.loads(pickle.dumps(model.model.spare)).kept


def test_a_model_that_runs_in_pytorch_for_now_has_none():
    model = native_models.seq2seq("marian", "float32")
    sources = tiny.sources(model, 3)
    wanted = model.generate(sources, max_new_tokens=5).sequences
    try:
        model.model.double()  # which the compiled executor does not take
        assert model.generate(sources, max_new_tokens=5).sequences == wanted
    finally:
        model.model.float()


def test_pytorchs_layers_have_none(family):
    model = tiny.seq2seq(family)
    model.generate(tiny.sources(model, 2), max_new_tokens=5)
    assert not model.model.spare.kept
