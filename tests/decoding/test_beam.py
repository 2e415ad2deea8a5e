"""Beam search against Transformers' own, token ids, in float64; sentences of a batch end at different times."""

import copy

import pytest
import tiny
import torch

from spec2seq import Beam, Greedy, Sample, Seq2Seq, UsageError

CAP = 16
# Each stopping rule with each kind of penalty.
SETTINGS = [(early, penalty) for early in (False, True, "never") for penalty in (0.6, 2.0, -0.5)]


def n_best(theirs, sources: list[list[int]], count: int, **settings) -> list[list[tuple[float, list[int]]]]:
    """Transformers' own hypotheses (score, token ids) of every source, best first."""
    eos = theirs.config.eos_token_id
    found = theirs.generate(
        **tiny.encoder_inputs(theirs, sources), max_new_tokens=CAP, do_sample=False, num_return_sequences=count,
        return_dict_in_generate=True, output_scores=True, **settings,
    )  # fmt: skip
    rows = [row[1:] for row in found.sequences.tolist()]
    rows = [row[: row.index(eos) + 1] if eos in row else row for row in rows]
    pairs = list(zip(found.sequences_scores.tolist(), rows, strict=True))
    return [pairs[place : place + count] for place in range(0, len(pairs), count)]


@pytest.mark.parametrize(("early_stopping", "length_penalty"), SETTINGS)
def test_the_best_beams_and_their_scores_are_those_of_transformers(family, early_stopping, length_penalty):
    settings = dict(num_beams=4, early_stopping=early_stopping, length_penalty=length_penalty)
    theirs, model = tiny.transformers_model(family, 2), tiny.seq2seq(family, 2)
    check_n_best(theirs, model, tiny.sources(theirs, 7, 75), **settings)


def check_n_best(theirs, model, sources, **settings):
    expected = n_best(theirs, sources, 3, **settings)
    method = Beam(**settings, num_return_sequences=3)
    for size in (3, 7):
        done = model.generate(sources, method, max_new_tokens=CAP, batch_size=size)
        for row, hypotheses in zip(done.rows, expected, strict=True):
            assert [found.tokens for found in row.hypotheses] == [tokens for _, tokens in hypotheses]
            assert [found.score for found in row.hypotheses] == pytest.approx([s for s, _ in hypotheses], abs=1e-4)
            assert row.tokens == row.hypotheses[0].tokens
    return expected


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_beams_equal_those_of_transformers(family, early_stopping):
    settings = dict(num_beams=4, early_stopping=early_stopping, length_penalty=0.6)
    theirs, model = tiny.transformers_model(family), tiny.seq2seq(family)
    found = check_n_best(theirs, model, tiny.sources(theirs, 6, 76), **settings)
    assert any(len({len(tokens) for _, tokens in hypotheses}) > 1 for hypotheses in found)
    theirs, model = tiny.transformers_model(family, 1), tiny.seq2seq(family, 1)
    sources = tiny.sources(theirs, 8, 71)
    expected = tiny.generated(theirs, sources, CAP, **settings)
    assert len({len(row) for row in expected}) >= 2
    assert model.generate(sources, Beam(**settings), max_new_tokens=CAP, batch_size=8).sequences == expected
    # Transformers agrees with itself, padded and not.
    assert [tiny.generated(theirs, [source], CAP, **settings)[0] for source in sources[:2]] == expected[:2]


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


def test_what_is_left_open_is_the_models():
    theirs, model = tiny.transformers_model("bart"), tiny.seq2seq("bart")
    config = copy.deepcopy(model.generation_config)
    config.update(num_beams=4, length_penalty=2.0, early_stopping="never", num_return_sequences=2)
    own = Seq2Seq(model.model, model.config, None, config)
    sources = tiny.sources(theirs, 5, 70)
    done = own.generate(sources, Beam(), max_new_tokens=CAP)
    told = model.generate(sources, Beam(4, 2.0, "never", 2), max_new_tokens=CAP)
    assert done.rows == told.rows
    assert {len(row.hypotheses) for row in done.rows} == {2}
    assert Beam().completed({"num_beams": 1, "length_penalty": None}) == Beam(5, 1.0, False, 1)
    assert Beam(1, 0.0, False, 1).completed(config.to_dict()) == Beam(1, 0.0, False, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 0}, "num_beams is 0; allowed: at least 1"),
        ({"length_penalty": "1"}, "length_penalty is '1'; allowed: numbers"),
        ({"early_stopping": "sometimes"}, "early_stopping is 'sometimes'; allowed: None, False, True, never"),
        ({"num_beams": 3, "num_return_sequences": 4}, "num_return_sequences is 4; allowed: from 1 to 3"),
    ],
)
def test_values_out_of_range(settings, message):
    with pytest.raises(UsageError, match=message):
        Beam(**settings)


def test_where_fewer_hypotheses_are_possible_than_are_asked_for():
    plain = tiny.seq2seq("marian")
    config = copy.deepcopy(plain.generation_config)
    config.update(forced_bos_token_id=20)
    model = Seq2Seq(plain.model, plain.config, None, config)
    for cap, count in ((1, 1), (2, 3)):
        (row,) = model.generate([[5, 6, 0]], Beam(3, num_return_sequences=3), max_new_tokens=cap).rows
        assert len(row.hypotheses) == count and row.tokens[0] == 20


def test_more_hypotheses_than_beams_of_the_model():
    with pytest.raises(UsageError, match="num_return_sequences is 9; allowed: from 1 to 5"):
        tiny.seq2seq("bart").generate([[5, 2]], Beam(num_return_sequences=9), max_new_tokens=3)


@pytest.mark.parametrize("method", [Greedy(), Sample()])
def test_several_outputs_a_source_are_refused_by_other_methods(method):
    model = copy.copy(tiny.seq2seq("bart"))
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.num_return_sequences = 3
    with pytest.raises(UsageError, match="num_return_sequences=3 is not supported by this method"):
        model.generate([[5, 2]], method, max_new_tokens=3)
