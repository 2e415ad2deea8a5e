"""Generation configs with several end tokens, against Transformers' own generation."""

import copy

import pytest
import tiny
import torch

import spec2seq
from spec2seq import (
    Assisted,
    Beam,
    BiLD,
    ConfidenceLength,
    Greedy,
    Lookup,
    Seq2Seq,
    Spec2SeqError,
    SpecDec,
    Speculative,
)
from spec2seq.decoding.official import OfficialBiLD
from spec2seq.models import native

CAP = 20
FAMILY = pytest.mark.parametrize("family", ["marian", "bart", "t5"])


def ending(family: str, seed: int = 0):
    """A module, a model of it and sources; what three of its ten rows write ends them, too."""
    theirs = copy.deepcopy(tiny.transformers_model(family, seed))
    sources = tiny.sources(theirs, 10, 61)
    rows = tiny.generated(theirs, sources, CAP)
    own = theirs.config.eos_token_id
    words = sorted({token for row in rows for token in row} - {own, theirs.config.pad_token_id})
    more = sorted(words, key=lambda token: abs(sum(token in row for row in rows) - 3))[:2]
    theirs.generation_config.eos_token_id = [own, *more]
    return theirs, Seq2Seq.from_transformers(theirs), sources


def cut(rows: list[list[int]], ends: list[int]) -> list[list[int]]:
    lengths = [next((n for n, token in enumerate(row, 1) if token in ends), None) for row in rows]
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


def generated(theirs, sources, **settings):
    found = theirs.generate(
        **tiny.encoder_inputs(theirs, sources), max_new_tokens=CAP, do_sample=False, **{"num_beams": 1, **settings}
    )
    return cut([row[1:] for row in found.tolist()], theirs.generation_config.eos_token_id)


@FAMILY
def test_greedy_and_drafts(family):
    theirs, model, sources = ending(family)
    ends = theirs.generation_config.eos_token_id
    expected = generated(theirs, sources)
    assert len({row[-1] for row in expected} & set(ends)) >= 2
    little = tiny.noisy_copy(model, 0.02).drafter()
    methods = [Greedy(), Lookup(4), Assisted(little, 4), SpecDec(tiny.paper_drafter(model), 3),
               SpecDec(tiny.cached_drafter(model), 4), Speculative(little, ConfidenceLength(0.3, 5))]  # fmt: skip
    for method in methods:
        for size in (1, 4):
            found = model.generate(sources, method, max_new_tokens=CAP, batch_size=size)
            assert found.sequences == expected
            assert found.stats.new_tokens == sum(map(len, expected))
    exact = BiLD(little, rollback_threshold=0, verify_tail=True)
    assert model.generate(sources, exact, max_new_tokens=CAP).sequences == expected
    official = model.generate(sources, OfficialBiLD(little), max_new_tokens=CAP).sequences
    assert any(row[-1] in ends[1:] for row in official)


@FAMILY
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_beams(family, early_stopping):
    theirs, model, sources = ending(family, 1)
    settings = dict(num_beams=4, early_stopping=early_stopping, length_penalty=0.6)
    expected = generated(theirs, sources, **settings)
    assert {row[-1] for row in expected} & set(theirs.generation_config.eos_token_id[1:])
    assert model.generate(sources, Beam(**settings), max_new_tokens=CAP, batch_size=4).sequences == expected


@pytest.mark.parametrize(
    "settings",
    [{"min_length": 7}, {"min_new_tokens": 5}, {"exponential_decay_length_penalty": (3, 1.4)},
     {"exponential_decay_length_penalty": (2, 1.2), "min_length": 4}],
    ids=str,
)  # fmt: skip
def test_processors_know_all_of_them(settings):
    theirs, _, sources = ending("bart")
    theirs.generation_config.update(**settings)
    model = Seq2Seq.from_transformers(theirs)
    expected = generated(theirs, sources)
    for method in (Greedy(), Lookup(4), Assisted(tiny.noisy_copy(model, 0.02).drafter(), 4)):
        assert model.generate(sources, method, max_new_tokens=CAP, batch_size=4).sequences == expected


def test_they_may_be_banned_words_and_are_not():
    theirs, _, sources = ending("bart")
    ends = theirs.generation_config.eos_token_id
    theirs.generation_config.bad_words_ids = [[ends[1]], [9], [11, ends[2]]]
    expected = generated(theirs, sources)
    assert Seq2Seq.from_transformers(theirs).generate(sources, max_new_tokens=CAP).sequences == expected


def test_the_compiled_executor_steps_aside():
    if native.unavailable(tiny.seq2seq("marian").model.architecture):
        pytest.skip("no compiler")
    theirs, _, sources = ending("marian")
    theirs = theirs.float()
    model, little = Seq2Seq.from_transformers(theirs), tiny.noisy_copy(Seq2Seq.from_transformers(theirs), 0.02)
    for one in (model, little):
        native.attach(one.model)
    expected = model.generate(sources, max_new_tokens=CAP).sequences
    ends = theirs.generation_config.eos_token_id
    assert {row[-1] for row in expected} & set(ends[1:])
    for method in (Assisted(little.drafter(), 4), Lookup(4), SpecDec(tiny.cached_drafter(model), 4)):
        assert model.generate(sources, method, max_new_tokens=CAP, batch_size=4).sequences == expected
    model.generation_config.eos_token_id = ends[1]  # one, but another than the model's
    single = model.generate(sources, max_new_tokens=CAP, batch_size=4).sequences
    theirs.generation_config.eos_token_id = [ends[1]]
    assert single == generated(theirs, sources)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}], ids=str)
def test_the_dropin(settings):
    """In the model's generation config, and said by a call."""
    theirs, _, sources = ending("bart")
    inputs, plain = tiny.encoder_inputs(theirs, sources[:4]), tiny.transformers_model("bart")
    asked = dict(max_new_tokens=CAP, do_sample=False, num_beams=settings.get("num_beams", 1))
    expected = theirs.generate(**inputs, **asked)
    assert torch.equal(spec2seq.generate(theirs, **inputs, **asked | settings), expected)
    asked["eos_token_id"] = theirs.generation_config.eos_token_id
    assert torch.equal(spec2seq.generate(plain, **inputs, **asked | settings), expected)


@pytest.mark.parametrize("value", [[], [2, 64], [-1], 99, ["x"]], ids=str)
def test_ids_that_are_none_are_refused(value):
    model = copy.copy(tiny.seq2seq("bart"))
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.eos_token_id = value
    with pytest.raises(Spec2SeqError, match="generation setting eos_token_id=.*; allowed: ids of 0 to 63"):
        model.generate([[5, 2]], max_new_tokens=2)
