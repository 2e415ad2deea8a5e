"""Greedy token ids against Transformers' own generation, in float64."""

import pytest
import tiny

from spec2seq import Assisted, Greedy, Lookup

CAP = 24


@pytest.mark.parametrize("seed", tiny.SEEDS[:2])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_equals_that_of_transformers(family, seed):
    theirs, model = tiny.transformers_model(family, seed), tiny.seq2seq(family, seed)
    sources = tiny.sources(theirs, 10, seed + 51)
    expected = tiny.generated(theirs, sources, CAP)
    assert len({len(row) for row in expected}) >= 3  # rows leave the batch one after another
    together = model.generate(sources, max_new_tokens=CAP, batch_size=10)
    assert together.sequences == expected
    assert model.generate(sources, max_new_tokens=CAP, batch_size=1).sequences == expected
    assert model.generate(sources, max_new_tokens=CAP, batch_size=3).sequences == expected
    alone = [tiny.generated(theirs, [source], CAP)[0] for source in sources[:3]]
    assert alone == expected[:3]  # and Transformers agrees with itself, padded and not


def test_greedy_counts_one_call_a_token(family):
    model = tiny.seq2seq(family)
    generation = model.generate(tiny.sources(model, 6, 50), Greedy(), max_new_tokens=CAP, batch_size=4)
    for row in generation.rows:
        assert row.counts.verifier_calls == row.counts.new_tokens == row.counts.verifier_tokens == len(row.tokens)
        assert row.counts.drafted == row.counts.drafter_calls == 0
    assert generation.stats.tokens_per_verifier_call == 1.0
    assert generation.stats.acceptance is None


@pytest.mark.parametrize("cap", [1, 2, 3, 7])
def test_caps_are_those_of_transformers(family, cap):
    theirs, model = tiny.transformers_model(family), tiny.seq2seq(family)
    sources = tiny.sources(theirs, 6, 50)
    expected = tiny.generated(theirs, sources, cap)
    assert max(map(len, expected)) == cap
    little = tiny.noisy_copy(model, 0.02).drafter()
    for method in (Greedy(), Assisted(little, 5), Lookup(5)):
        assert model.generate(sources, method, max_new_tokens=cap, batch_size=4).sequences == expected


def test_the_longest_output_that_positions_allow():
    """The last token is written and never fed, so an output may have as many tokens as there are positions."""
    for name in ("marian", "bart"):
        theirs, model = tiny.transformers_model(name), tiny.seq2seq(name)
        most = model.model.architecture.max_positions
        assert most == 96
        sources = tiny.sources(theirs, 12, 50)
        expected = tiny.generated(theirs, sources, most)
        assert max(map(len, expected)) == most
        for method in (Greedy(), Assisted(tiny.noisy_copy(model, 0.02).drafter(), 7), Lookup(9)):
            assert model.generate(sources, method, max_new_tokens=most, batch_size=5).sequences == expected
