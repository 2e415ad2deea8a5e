"""Beam sampling against Transformers' own, token ids: a source's draws are those of its seed alone."""

import pytest
import tiny
import torch

from spec2seq import Beam, UsageError
from spec2seq.decoding.sampling import Sampling

CAP, SEED = 20, 5
FILTERS = [
    dict(temperature=1.5, top_k=0), dict(temperature=0.7, top_k=12, top_p=0.9), dict(top_k=0, top_p=0.5),
    dict(top_k=1), dict(top_k=0, min_p=0.3), dict(top_k=0, typical_p=0.4),
]  # fmt: skip


def drawn(theirs, source: list[int], index: int, count: int, **settings) -> list[tuple[list[int], float]]:
    """Transformers' own hypotheses (token ids, score) of a source, best first, under the seed that is ours for it."""
    eos = theirs.config.eos_token_id
    torch.manual_seed(SEED * 1_000_003 + index)
    found = theirs.generate(
        **tiny.encoder_inputs(theirs, [source]), max_new_tokens=CAP, do_sample=True, num_return_sequences=count,
        return_dict_in_generate=True, output_scores=True, **settings,
    )  # fmt: skip
    rows = [row[1:] for row in found.sequences.tolist()]
    rows = [row[: row.index(eos) + 1] if eos in row else row for row in rows]
    return list(zip(rows, found.sequences_scores.tolist(), strict=True))


def check(family: str, count: int, filters: dict, **settings):
    theirs, model = tiny.transformers_model(family), tiny.seq2seq(family)
    sources = tiny.sources(theirs, 5, 76)
    expected = [drawn(theirs, source, i, count, **settings, **filters) for i, source in enumerate(sources)]
    method = Beam(**settings, num_return_sequences=count, sampling=Sampling(**filters, seed=SEED))
    for size in (1, 3, 5):
        done = model.generate(sources, method, max_new_tokens=CAP, batch_size=size)
        for row, hypotheses in zip(done.rows, expected, strict=True):
            assert [found.tokens for found in row.hypotheses] == [tokens for tokens, _ in hypotheses]
            assert [found.score for found in row.hypotheses] == pytest.approx([s for _, s in hypotheses], rel=1e-4)
    return done


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_draws_of_transformers(family, count):
    done = check(family, count, dict(temperature=2.0, top_k=30, top_p=0.98), num_beams=3, length_penalty=0.6)
    best = tiny.seq2seq(family).generate(tiny.sources(tiny.seq2seq(family), 5, 76), Beam(3, 0.6), max_new_tokens=CAP)
    assert done.sequences != best.sequences
    assert any(len(found.tokens) < CAP for row in done.rows for found in row.hypotheses)


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_filters_and_ways_to_stop(filters, early_stopping):
    check("bart", 3, filters, num_beams=3, early_stopping=early_stopping, length_penalty=1.0)


def test_filters_leave_two_tokens():
    """So that a beam has one that is not the end."""
    logits = torch.tensor([[5.0, 1.0, 0.5, 0.2]])
    for filters in (dict(top_k=1), dict(top_p=0.1), dict(min_p=0.9), dict(typical_p=0.01)):
        for fewest in (1, 2):
            assert Sampling(**filters).filtered(logits, fewest).isfinite().sum() == fewest


def test_renormalizing_is_refused():
    with pytest.raises(UsageError, match="renormalize_logits=True is not supported by Beam with sampling"):
        Beam(3, sampling=Sampling()).completed({"renormalize_logits": True})
    assert Beam(3).completed({"renormalize_logits": True}).num_beams == 3
