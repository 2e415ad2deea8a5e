"""Beam search against Transformers' own, token ids, in float64; sentences of a batch end at different times."""

import pytest
import tiny
import torch

from spec2seq import Beam, UsageError

CAP = 16
SETTINGS = [(early, penalty) for early in (False, True) for penalty in (0.6, 1.0, 2.0)]


@pytest.mark.parametrize(("early_stopping", "length_penalty"), SETTINGS)
def test_beams_equal_those_of_transformers(family, early_stopping, length_penalty):
    settings = dict(num_beams=4, early_stopping=early_stopping, length_penalty=length_penalty)
    for seed in tiny.SEEDS[:2]:
        theirs, model = tiny.transformers_model(family, seed), tiny.seq2seq(family, seed)
        sources = tiny.sources(theirs, 8, seed + 70)
        expected = tiny.generated(theirs, sources, CAP, **settings)
        assert len({len(row) for row in expected}) >= 2
        assert model.generate(sources, Beam(**settings), max_new_tokens=CAP, batch_size=8).sequences == expected
    # Transformers agrees with itself, padded and not; so do we, in another batch.
    assert [tiny.generated(theirs, [source], CAP, **settings)[0] for source in sources[:2]] == expected[:2]
    assert model.generate(sources, Beam(**settings), max_new_tokens=CAP, batch_size=3).sequences == expected


@pytest.mark.parametrize("beams", [1, 2, 7])
def test_other_numbers_of_beams(family, beams):
    theirs, model = tiny.transformers_model(family), tiny.seq2seq(family)
    sources = tiny.sources(theirs, 5, 80)
    expected = tiny.generated(theirs, sources, CAP, num_beams=beams)
    assert model.generate(sources, Beam(beams), max_new_tokens=CAP, batch_size=5).sequences == expected


def test_beams_find_what_greedy_misses(family):
    model = tiny.seq2seq(family)
    sources = tiny.sources(model, 8, 70)
    greedy = model.generate(sources, max_new_tokens=CAP).sequences
    assert model.generate(sources, Beam(4), max_new_tokens=CAP).sequences != greedy


@pytest.mark.parametrize("cap", [1, 2, 3])
def test_short_caps(family, cap):
    theirs, model = tiny.transformers_model(family), tiny.seq2seq(family)
    sources = tiny.sources(theirs, 5, 90)
    expected = tiny.generated(theirs, sources, cap, num_beams=3)
    assert model.generate(sources, Beam(3), max_new_tokens=cap, batch_size=5).sequences == expected


def test_counts_of_a_sentence_do_not_depend_on_its_batch():
    model = tiny.seq2seq("bart")
    sources = tiny.sources(model, 6, 70)
    runs = [model.generate(sources, Beam(3), max_new_tokens=CAP, batch_size=size) for size in (1, 6)]
    for alone, together in zip(runs[0].rows, runs[1].rows, strict=True):
        assert alone.counts == together.counts
        assert together.counts.verifier_calls >= len(together.tokens)
        assert together.counts.verifier_tokens == 3 * together.counts.verifier_calls
    assert runs[1].stats.new_tokens == sum(len(row.tokens) for row in runs[1].rows)
    assert runs[1].stats.verifier_passes == max(row.counts.verifier_calls for row in runs[1].rows)
    assert runs[0].stats.verifier_passes == runs[0].stats.verifier_calls


def test_one_host_read_a_step(monkeypatch):
    model = tiny.seq2seq("bart")
    sources, reads, tolist = tiny.sources(model, 3), [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(tensor.shape) or tolist(tensor))
    done = model.generate(sources, Beam(2), max_new_tokens=CAP)
    assert reads == [(3, 4, 2)] * done.stats.verifier_passes


def test_no_beams():
    with pytest.raises(UsageError, match="num_beams is 0; allowed: at least 1"):
        Beam(0)
