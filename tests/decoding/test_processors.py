"""The generation config's processors against Transformers' own, alone and in pairs, with drafts and with beams."""

import copy

import pytest
import tiny
import torch
from transformers import GenerationConfig, NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from spec2seq import Assisted, Beam, Greedy, Lookup, Seq2Seq, Spec2SeqError, SpecDec
from spec2seq.decoding.processors import (
    BiasSequences,
    NoRepeatNgrams,
    PenalizeRepetition,
    Prefix,
    Renormalize,
    processed,
)

CAP, LONG = 14, 24
REPEATS = [
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8},
    {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "min_length": 9},
]


def common(rows: list[list[int]], eos: int) -> list[int]:
    """The ids that occur most, but for the end token."""
    ids = [token for row in rows for token in row if token != eos]
    return sorted(set(ids), key=lambda token: (-ids.count(token), token))


def settings_for(model: Seq2Seq, greedy: list[list[int]]) -> dict[str, dict]:
    """Settings that change what this model writes."""
    eos = model.config.eos_token_id
    first, second, third = common(greedy, eos)[:3]
    pairs = [row[place : place + 2] for row in greedy for place in range(len(row) - 1)]
    triples = [row[:3] for row in greedy if len(row) > 3]
    words = [*sorted(pairs, key=lambda pair: (-pairs.count(pair), pair))[:4], *triples[:2]]
    starts = sorted({row[0] for row in greedy} - {eos})
    return {
        "min_length": {"min_length": 9},
        "min_new_tokens": {"min_new_tokens": 6},
        "forced_bos_token_id": {"forced_bos_token_id": third},
        "forced_eos_token_id": {"forced_eos_token_id": eos},
        "forced_eos_token_id as a list": {"forced_eos_token_id": [second]},
        "suppress_tokens": {"suppress_tokens": [first, second]},
        "begin_suppress_tokens": {"begin_suppress_tokens": starts},
        "bad_words_ids": {"bad_words_ids": [[first], [third]]},
        "bad_words_ids with the end token": {"bad_words_ids": [[first], [eos]]},
        "bad_words_ids of several tokens": {"bad_words_ids": words},
        "sequence_bias": {"sequence_bias": [[[first], -2.5], [[second], 1.5], [words[0], 3.0], [words[1], -4.0]]},
        "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (3, 1.4)},
        "forced_eos_token_id of several": {"forced_eos_token_id": [third, eos]},
        "remove_invalid_values": {"remove_invalid_values": True, "min_length": 7},
        "renormalize_logits": {"renormalize_logits": True, "bad_words_ids": [[first], words[1]]},
        "decay and length": {"exponential_decay_length_penalty": (2, 1.3), "min_new_tokens": 7},
        "both lengths, new tokens win": {"min_length": 12, "min_new_tokens": 4},
        "length and end": {"min_length": 9, "forced_eos_token_id": eos},
        "start and begin": {"forced_bos_token_id": third, "begin_suppress_tokens": starts + [first]},
        "start and length": {"forced_bos_token_id": third, "min_new_tokens": 3},
        "words and tokens": {"bad_words_ids": [[first]], "suppress_tokens": [second], "min_new_tokens": 5},
    }


NAMES = list(settings_for(tiny.seq2seq("t5"), [[5, 6, 7, 8], [8, 9, 1]]))


def configured(model: Seq2Seq, settings: dict) -> Seq2Seq:
    config = copy.deepcopy(model.generation_config)
    config.update(**settings)
    return Seq2Seq(model.model, model.config, model.tokenizer, config)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", ["marian", "t5"])
@pytest.mark.filterwarnings("ignore")
def test_lossless_under_a_processor(family, name):
    theirs, plain = tiny.transformers_model(family), tiny.seq2seq(family)
    sources = tiny.sources(theirs, 8, 50)
    greedy = plain.generate(sources, max_new_tokens=CAP).sequences
    settings = settings_for(plain, greedy)[name]
    expected = tiny.generated(theirs, sources, CAP, **settings)
    assert expected != greedy  # the setting matters here
    model = configured(plain, settings)
    assert model.generate(sources, Greedy(), max_new_tokens=CAP).sequences == expected
    little = tiny.noisy_copy(plain, 0.02).drafter()
    for method in (Assisted(little, 4), Lookup(3)):
        drafted = model.generate(sources, method, max_new_tokens=CAP, batch_size=5)
        assert drafted.sequences == expected
        assert 0 < drafted.stats.accepted < drafted.stats.drafted  # drafts stood and fell under the processor


@pytest.mark.parametrize("settings", REPEATS, ids=str)
@pytest.mark.parametrize("family", ["marian", "bart", "t5"])
def test_lossless_where_repeats_are_penalized_or_banned(family, settings):
    theirs, plain = tiny.transformers_model(family), tiny.seq2seq(family)
    sources = tiny.sources(theirs, 8, 50)
    expected = tiny.generated(theirs, sources, LONG, **settings)
    assert expected != tiny.generated(theirs, sources, LONG)
    model = configured(plain, settings)
    assert model.generate(sources, Greedy(), max_new_tokens=LONG).sequences == expected
    little = tiny.noisy_copy(plain, 0.02).drafter()
    blocks = SpecDec(tiny.cached_drafter(plain), 5), SpecDec(tiny.paper_drafter(plain), 3)
    for method in (Assisted(little, 1), Assisted(little, 4), Assisted(little, 9), Lookup(3), *blocks):
        drafted = model.generate(sources, method, max_new_tokens=LONG, batch_size=5)
        assert drafted.sequences == expected
        if method.drafter is little:
            assert 0 < drafted.stats.accepted < drafted.stats.drafted


@pytest.mark.parametrize("settings", REPEATS, ids=str)
@pytest.mark.parametrize("family", ["marian", "bart", "t5"])
def test_beams_where_repeats_are_penalized_or_banned(family, settings):
    theirs, plain = tiny.transformers_model(family), tiny.seq2seq(family)
    sources = tiny.sources(theirs, 6, 100)
    expected = tiny.generated(theirs, sources, LONG, num_beams=3, **settings)
    assert expected != tiny.generated(theirs, sources, LONG, num_beams=3)
    assert configured(plain, settings).generate(sources, Beam(3), max_new_tokens=LONG).sequences == expected


@pytest.mark.parametrize("value", [1, 2, 3, 5, 1.3, 0.7], ids=str)
def test_each_place_is_processed_as_transformers_does_it_alone(value):
    ours, theirs = (
        (NoRepeatNgrams(value), NoRepeatNGramLogitsProcessor(value)) if isinstance(value, int)
        else (PenalizeRepetition(value), RepetitionPenaltyLogitsProcessor(value))
    )  # fmt: skip
    torch.manual_seed(0)
    tokens = torch.randint(2, (6, 20))  # behind what stands before a place come drafts and leftovers
    lengths = torch.tensor([1, 2, 3, 7, 12, 16])
    logits = torch.randn(6, 5, 7)
    logits[:, :, 2] = -torch.inf  # banned already
    found = ours(logits.clone(), Prefix(tokens, lengths, lengths + 9, torch.ones_like(lengths)))
    assert not torch.equal(found, logits)
    for row, length in enumerate(lengths.tolist()):
        for place in range(5):
            alone = theirs(tokens[row : row + 1, : length + place], logits[row, place][None].clone())
            assert torch.equal(found[row, place], alone[0])
    first = Prefix(tokens[:1, :1], lengths[:1], lengths[:1] + 9, lengths[:1])  # nothing behind the start token
    assert torch.equal(ours(logits[:1, :1], first)[0], theirs(tokens[:1, :1], logits[0, :1].clone()))


@pytest.mark.parametrize(
    "process", [PenalizeRepetition(1.11), BiasSequences((((0,), 30.1), ((1,), 30.1))), Renormalize()], ids=str
)
def test_they_act_in_float32(process):
    """In bfloat16 both tokens would have the same logit."""
    logits, one = torch.tensor([[[3.0, 2.984375]]], dtype=torch.bfloat16), torch.ones(1, dtype=torch.long)
    prefix = Prefix(torch.tensor([[0]]), one, one, one)
    found = processed(logits, prefix, [process])
    assert torch.equal(found, process(logits.float(), prefix))
    assert len({*found[0, 0].tolist()}) == 2


@pytest.mark.parametrize("family", [name for name in tiny.FAMILIES if name not in tiny.KINDS])
@pytest.mark.filterwarnings("ignore")
def test_every_family_under_processors(family):
    """Several at once, with and without drafts, and with beams."""
    theirs, plain = tiny.transformers_model(family), tiny.seq2seq(family)
    sources, eos = tiny.sources(theirs, 6, 50), theirs.config.eos_token_id
    greedy = plain.generate(sources, max_new_tokens=CAP).sequences
    first, second = common(greedy, eos)[:2]
    settings = {"forced_bos_token_id": second, "no_repeat_ngram_size": 2, "bad_words_ids": [[first], greedy[0][:2]],
                "min_new_tokens": 5, "forced_eos_token_id": eos}  # fmt: skip
    expected, model = tiny.generated(theirs, sources, CAP, **settings), configured(plain, settings)
    assert expected != greedy
    for method in (Greedy(), Lookup(3), Assisted(tiny.noisy_copy(plain, 0.02).drafter(), 4)):
        assert model.generate(sources, method, max_new_tokens=CAP, batch_size=4).sequences == expected
    beams = tiny.generated(theirs, sources, CAP, num_beams=3, **settings)
    assert model.generate(sources, Beam(3), max_new_tokens=CAP).sequences == beams


@pytest.mark.parametrize(
    "name",
    ["min_length", "forced_bos_token_id", "forced_eos_token_id", "words and tokens", "begin_suppress_tokens",
     "sequence_bias", "exponential_decay_length_penalty", "renormalize_logits"],
)  # fmt: skip
@pytest.mark.parametrize("family", ["marian", "t5-gated"])
def test_beams_under_a_processor(family, name):
    theirs, plain = tiny.transformers_model(family), tiny.seq2seq(family)
    sources = tiny.sources(theirs, 6, 100)
    settings = settings_for(plain, plain.generate(sources, max_new_tokens=CAP).sequences)[name]
    expected = tiny.generated(theirs, sources, CAP, num_beams=3, **settings)
    assert expected != tiny.generated(theirs, sources, CAP, num_beams=3)
    assert configured(plain, settings).generate(sources, Beam(3), max_new_tokens=CAP).sequences == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 0.0},
        {"encoder_no_repeat_ngram_size": 1},
        {"encoder_repetition_penalty": 1.5},
        {"guidance_scale": 2.0},
        {"num_beam_groups": 2},
        {"penalty_alpha": 0.6},
        {"stop_strings": ["."]},
        {"epsilon_cutoff": 0.1},
        {"decoder_start_token_id": 5},
        {"no_repeat_ngram_size": 0.5},
        {"no_repeat_ngram_size": 2**61},
        {"min_length": 5.0},
        {"min_new_tokens": -1},
        {"suppress_tokens": [5.0]},
        {"begin_suppress_tokens": 5},
        {"bad_words_ids": [[]]},
        {"forced_bos_token_id": "x"},
        {"forced_eos_token_id": []},
        {"sequence_bias": {(): -1.0}},
        {"sequence_bias": 5},
        {"sequence_bias": [[[5], "x"]]},
        {"sequence_bias": [[[64], 2.0]]},
        {"bad_words_ids": [5]},
        {"bad_words_ids": [[64, 5]]},
        {"repetition_penalty": "x"},
        {"exponential_decay_length_penalty": 5},
        {"exponential_decay_length_penalty": (3, "x")},
        {"forced_bos_token_id": 64},
        {"forced_eos_token_id": [-1]},
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_by_name(settings):
    plain = tiny.seq2seq("t5")
    model = Seq2Seq(plain.model, plain.config, None, copy.deepcopy(plain.generation_config))
    vars(model.generation_config).update(settings)  # Transformers' `update` refuses some of them
    with pytest.raises(Spec2SeqError) as error:
        model.generate([[5, 6, 1]], max_new_tokens=4)
    (name,) = settings
    assert name in str(error.value)
    assert error.value.exit_code == 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "sequence_bias": None, "typical_p": 1.0},
        {"eos_token_id": [1], "decoder_start_token_id": 0, "temperature": 0.7, "do_sample": True, "num_beams": 4},
        {"min_length": 0, "min_new_tokens": 0, "suppress_tokens": [], "guidance_scale": 1.0},
        {"suppress_tokens": [-1, 64], "begin_suppress_tokens": [1000]},
    ],
    ids=str,
)
def test_settings_that_change_nothing(settings):
    plain = tiny.seq2seq("t5")
    sources = tiny.sources(plain, 4)
    model = configured(plain, settings)
    assert model.processors() == []
    assert model.generate(sources, max_new_tokens=8).sequences == plain.generate(sources, max_new_tokens=8).sequences


def test_a_fresh_generation_config_asks_for_nothing():
    model = tiny.seq2seq("t5")
    assert Seq2Seq(model.model, model.config, None, GenerationConfig()).processors() == []
    assert Seq2Seq(model.model, model.config, None, None).processors() == []
