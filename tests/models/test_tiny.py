"""The tiny models must be worth testing with: rows end at different steps and differ by source."""

import pytest
import tiny

from spec2seq import Assisted


@pytest.mark.parametrize("seed", tiny.SEEDS)
def test_rows_end_at_different_steps_and_differ_by_source(family, seed):
    model = tiny.seq2seq(family, seed)
    rows = model.generate(tiny.sources(model, 24, seed + 100), max_new_tokens=24, batch_size=24).sequences
    ends = [len(row) for row in rows if row[-1] == model.config.eos_token_id]
    assert len(ends) >= 0.3 * len(rows)
    assert len(ends) < len(rows)  # the cap is exercised too
    assert len(set(ends)) >= 3
    assert len({tuple(row) for row in rows}) >= 0.6 * len(rows)
    assert sum(len(set(row)) > 1 for row in rows) >= 0.5 * len(rows)


def test_noisy_copies_are_sometimes_right(family):
    model = tiny.seq2seq(family)
    sources = tiny.sources(model, 12, 100)
    shares = [
        model.generate(
            sources, Assisted(tiny.noisy_copy(model, noise).drafter(), 4), max_new_tokens=24
        ).stats.acceptance
        for noise in (0.01, 0.05)
    ]
    assert all(0.2 < share < 0.95 for share in shares)
    assert shares[0] > shares[1]  # more noise, worse drafts


def test_generation_is_that_of_the_family_and_not_of_a_cache_of_models():
    a, b = (tiny.seq2seq("bart", seed) for seed in (0, 1))
    sources = tiny.sources(a, 4)
    assert a.generate(sources, max_new_tokens=8).sequences != b.generate(sources, max_new_tokens=8).sequences
