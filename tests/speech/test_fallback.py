"""What a window goes on from, when it is silent, and when it is heard again: Transformers' where it draws nothing."""

import copy
import statistics
import zlib

import numpy as np
import pytest
import tiny
import tiny_sound
import torch
import transformers
from speech.test_transcribe import features, long_sounds, tokens

from spec2seq import Assisted, Beam, Fallback, Greedy, Lookup, Sample, Seq2Seq, UsageError, transcribe
from spec2seq.decoding.score import logits_behind
from spec2seq.speech import windows
from spec2seq.speech.fallback import compression_ratio

CAP = 20
QUIET = Fallback((), compression_ratio=None, log_probability=None, no_speech=None)


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity_warning()


def theirs(seed: int, sound: np.ndarray, **settings) -> list[dict]:
    """Segments that Transformers finds in a long sound."""
    spectrogram = features(sound, truncation=False, padding="longest")
    return tiny_sound.transformers_model(seed).generate(
        spectrogram, language="fr", task="transcribe", return_timestamps=True, return_segments=True,
        attention_mask=torch.ones_like(spectrogram[:, 0]).long(), **{"max_new_tokens": CAP} | settings,
    )["segments"][0]  # fmt: skip


def ours(seed: int, sounds, method=None, batch_size=3, **settings):
    return transcribe(tiny_sound.seq2seq(seed), sounds, method, language="fr", max_new_tokens=CAP,
                      batch_size=batch_size, **settings)  # fmt: skip


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("prompt", [None, "w7 w8 w9 w9"])
@pytest.mark.parametrize("conditioned", [False, True])
def test_what_windows_go_on_from_as_in_transformers(seed, prompt, conditioned):
    sounds, settings = long_sounds(), {"condition_on_prev_tokens": conditioned}
    if prompt is not None:
        ids = [tiny_sound.IDS["<|startofprev|>"], 7, 8, 9, 9]
        settings["prompt_ids"] = torch.tensor(ids)
    found = ours(seed, sounds, condition_on_previous=conditioned, initial_prompt=prompt)
    for sound, one in zip(sounds, found.transcripts, strict=True):
        wanted = theirs(seed, sound, **settings)
        assert [segment.tokens for segment in one.segments] == [segment["tokens"].tolist() for segment in wanted]
        assert len(wanted) > 2
    plain = ours(seed, sounds)
    assert (tokens(found) != tokens(plain)) == (conditioned or prompt is not None)
    for method in (Assisted(tiny.noisy_copy(tiny_sound.seq2seq(seed), 0.02).drafter(), 3), Lookup(3)):
        drafted = ours(seed, sounds, method, 2, condition_on_previous=conditioned, initial_prompt=prompt)
        assert drafted.transcripts == found.transcripts and drafted.stats.drafted


@pytest.mark.parametrize("conditioned", [False, True])
def test_windows_that_go_on_as_long_as_they_can(conditioned):
    (sound,), ids = long_sounds(1), [tiny_sound.IDS["<|startofprev|>"], 7, 8, 9]
    found = transcribe(tiny_sound.seq2seq(0), [sound], language="fr", condition_on_previous=conditioned,
                       initial_prompt="w7 w8 w9")  # fmt: skip
    wanted = theirs(0, sound, max_new_tokens=None, condition_on_prev_tokens=conditioned, prompt_ids=torch.tensor(ids))
    assert tokens(found) == [sum((part["tokens"].tolist() for part in wanted), [])]
    windows = found.transcripts[0].windows
    assert max(len(window.prompt) + len(window.tokens) for window in windows) == 64  # positions


def window_scores(seed: int, sounds, **settings) -> list[float]:
    found = ours(seed, sounds, fallback=QUIET, **settings)
    return sorted({part.log_probability for one in found.transcripts for part in one.segments})


def silence(seed: int, sound: np.ndarray) -> float:
    """The probability that nothing is said in a sound's first window."""
    model, sound = tiny_sound.seq2seq(seed), sound[: tiny_sound.RATE]
    logits = logits_behind(model.model, model.source_ids(sound, "a sound"), [tiny_sound.START])
    return float(logits.softmax(-1)[0, 0, tiny_sound.IDS["<|nospeech|>"]])


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("conditioned", [False, True])
def test_silence_as_in_transformers(seed, conditioned):
    sounds = long_sounds()
    threshold = statistics.median(window_scores(seed, sounds))
    likely = statistics.median(silence(seed, sound) for sound in sounds)
    found = ours(seed, sounds, fallback=Fallback((), None, threshold, likely), condition_on_previous=conditioned)
    wanted = [
        theirs(seed, sound, temperature=0.0, logprob_threshold=threshold, no_speech_threshold=likely,
               condition_on_prev_tokens=conditioned) for sound in sounds
    ]  # fmt: skip
    for one, parts in zip(found.transcripts, wanted, strict=True):
        assert [segment.tokens for segment in one.segments] == [part["tokens"].tolist() for part in parts]
    unlikely = Fallback((), None, threshold, no_speech=1.0)
    assert found.transcripts != ours(seed, sounds, fallback=unlikely, condition_on_previous=conditioned).transcripts


def test_beams_are_judged_by_their_scores():
    sounds = tiny_sound.sounds(8)
    scores = window_scores(0, sounds, method=Beam(3))
    found = ours(0, sounds, Beam(3), fallback=Fallback((2.0,), None, scores[3], None))
    plain = ours(0, sounds, Beam(3), fallback=QUIET)
    again = [one.segments[0].temperature == 2.0 for one in found.transcripts]
    assert again == [one.segments[0].log_probability < scores[3] for one in plain.transcripts] and any(again)


def test_a_window_is_heard_again_until_it_stands():
    sounds = tiny_sound.sounds(8)
    scores = window_scores(0, sounds)
    hot = (0.3, 0.5, 0.8, 1.0, 2.0)
    again = Fallback(hot, None, log_probability=scores[3], no_speech=None, seed=5)
    plain, found = ours(0, sounds), ours(0, sounds, fallback=again)
    kept = 0
    for one, before in zip(found.transcripts, plain.transcripts, strict=True):
        (segment,), (first,) = one.segments, before.segments
        if not segment.temperature:
            assert segment.log_probability >= scores[3] and segment.tokens == first.tokens
            kept += 1
        else:
            assert segment.temperature in hot
            assert segment.temperature == 2.0 or segment.log_probability >= scores[3]
    assert kept == sum(score >= scores[3] for score in scores) < len(sounds)
    assert len({one.segments[0].temperature for one in found.transcripts}) >= 3
    for method, size in ((None, 1), (Lookup(3), 4)):  # what is drawn depends on neither
        other = ours(0, sounds, method, size, fallback=again)
        for one, wanted in zip(other.transcripts, found.transcripts, strict=True):
            assert (one.segments[0].temperature, one.text) == (wanted.segments[0].temperature, wanted.text)
    other = ours(0, sounds, fallback=Fallback(hot, None, scores[3], None, seed=6))
    assert other.texts != found.texts


def test_a_text_that_repeats_itself_is_heard_again():
    sounds = tiny_sound.sounds(8)
    plain = ours(0, sounds)
    ratios = [compression_ratio(text) for text in plain.texts]
    most = statistics.median(ratios)
    found = ours(0, sounds, fallback=Fallback((1.0,), most, None, None))
    again = [one.segments[0].temperature == 1.0 for one in found.transcripts]
    assert again == [ratio > most for ratio in ratios] and any(again)
    assert compression_ratio("ab" * 90) == 180 / len(zlib.compress(b"ab" * 90)) > 10


def test_hot_windows_tell_the_next_nothing():
    """Conditioning ends behind a window that was heard at a temperature of 0.5, and begins anew."""
    (sound,) = long_sounds(1)
    never = Fallback((0.5,), compression_ratio=0.0, log_probability=None, no_speech=None)
    runs = [ours(0, [sound], fallback=never, condition_on_previous=conditioned) for conditioned in (False, True)]
    assert runs[0].transcripts == runs[1].transcripts
    assert {part.temperature for part in runs[0].transcripts[0].segments} == {0.5}
    cool = Fallback((0.4,), compression_ratio=0.0, log_probability=None, no_speech=None)
    runs = [ours(0, [sound], fallback=cool, condition_on_previous=conditioned) for conditioned in (False, True)]
    assert runs[0].transcripts != runs[1].transcripts
    for temperature, same in ((0.5, True), (0.4, False)):  # of the method itself, too
        method = Sample(temperature, seed=3)
        runs = [ours(0, [sound], method, condition_on_previous=conditioned) for conditioned in (False, True)]
        assert (runs[0].texts == runs[1].texts) is same
        assert {part.temperature for part in runs[0].transcripts[0].segments} == {temperature}


def test_a_fallback_draws_anew():
    """Not by the numbers that the method itself has drawn by."""
    sounds, again = tiny_sound.sounds(8), Fallback((0.9,), compression_ratio=0.0, log_probability=None, no_speech=None)
    for seed in range(3):
        assert ours(0, sounds, Sample(0.9, seed=seed)).texts != ours(0, sounds, fallback=again).texts
    assert len({again.draws(number) for number in range(5)} | {Fallback(seed=1).draws(0)}) == 6


def test_whether_a_window_is_silent_is_asked_once(monkeypatch):
    asked, (sound,) = [], tiny_sound.sounds(1)
    monkeypatch.setattr(windows, "logits_behind", lambda *given: (asked.append(1), logits_behind(*given))[1])
    ours(0, [sound], fallback=Fallback(compression_ratio=None, log_probability=-1e-9, no_speech=0.9999))
    assert len(asked) == 1


@pytest.mark.parametrize("conditioned", [False, True])
def test_a_length_of_the_generation_config_is_of_what_is_written(conditioned):
    """What windows go on from takes nothing of it."""
    base, sounds = tiny_sound.seq2seq(3), long_sounds()
    config = copy.deepcopy(base.generation_config)
    config.max_length = 24
    model = Seq2Seq(base.model, base.config, base.tokenizer, config)
    model.extractor = base.extractor
    settings = {"language": "fr", "condition_on_previous": conditioned, "initial_prompt": "w7 w8 w9 w9"}
    found = transcribe(model, sounds, **settings)
    assert found.transcripts == transcribe(base, sounds, max_new_tokens=24 - 3, **settings).transcripts


def test_an_initial_prompt_is_whole_or_refused():
    """Of 64 positions four are for what stands before and behind it; Transformers cuts none."""
    (sound,), words = long_sounds(1), [f"w{place % 50}" for place in range(61)]
    ids = [tiny_sound.IDS["<|startofprev|>"], *(int(word[1:]) for word in words[:40])]
    (found,) = ours(0, [sound], initial_prompt=" ".join(words[:40]), timestamps=True).transcripts
    wanted = theirs(0, sound, prompt_ids=torch.tensor(ids))
    assert [segment.tokens for segment in found.segments] == [part["tokens"].tolist() for part in wanted]
    with pytest.raises(UsageError, match="initial_prompt has 41 tokens; the decoder has places for 40 beside"):
        ours(0, [sound], initial_prompt=" ".join(words[:41]), timestamps=True)
    with pytest.raises(UsageError, match="condition_on_previous has no room; the decoder has places for 0"):
        transcribe(tiny_sound.seq2seq(0), [sound], language="fr", condition_on_previous=True, max_new_tokens=60)


def test_english_alone():
    model, sounds = tiny_sound.seq2seq(0, english=True), long_sounds(2)
    runs = [
        transcribe(model, sounds, max_new_tokens=CAP, batch_size=size, fallback=Fallback(no_speech=0.01),
                   condition_on_previous=True, initial_prompt="w3 w4") for size in (1, 2)
    ]  # fmt: skip
    assert runs[0].texts == runs[1].texts and any(runs[0].texts)


def test_silence_alone():
    """With no threshold of log-probability the token for silence decides."""
    sounds = tiny_sound.sounds(8)
    heard = [silence(0, sound) for sound in sounds]
    found = ours(0, sounds, fallback=Fallback((), None, None, no_speech=statistics.median(heard)))
    assert [not one.segments for one in found.transcripts] == [p > statistics.median(heard) for p in heard]
    assert found.texts.count("") == 4


@pytest.mark.parametrize("family", ["marian", "t5"])
@pytest.mark.parametrize("graphs", [False, True])
def test_the_log_probability_of_each_token(family, graphs):
    model = tiny.seq2seq(family)
    sources = tiny.sources(model, 7)
    served = Seq2Seq(model.model, model.config, None, model.generation_config)
    served.model.graphs = graphs
    begins = [[9, 8, 7][: row % 3] for row in range(7)]
    methods = (Greedy(), Assisted(tiny.noisy_copy(model, 0.02).drafter(), 3), Sample(seed=1))
    try:
        for method in methods:
            found = served.generate(sources, method, max_new_tokens=9, batch_size=3, scores=True, prompts=begins)
            for source, begin, row in zip(sources, begins, found.rows, strict=True):
                whole, before = (model.score([source], [ids])[0] for ids in ([*begin, *row.tokens], begin))
                assert len(row.log_probabilities) == len(row.tokens)
                assert sum(row.log_probabilities) == pytest.approx(whole - before, abs=1e-9)
            assert found.sequences == served.generate(sources, method, max_new_tokens=9, prompts=begins).sequences
    finally:
        served.model.graphs = False
    assert served.generate(sources).rows[0].log_probabilities is None


def test_a_forced_token_is_certain():
    model = tiny.seq2seq("marian")
    config = transformers.GenerationConfig(**(model.generation_config.to_dict() | {"forced_bos_token_id": 9}))
    forced = Seq2Seq(model.model, model.config, None, config)
    (row,) = forced.generate(tiny.sources(model, 1), max_new_tokens=5, scores=True).rows
    assert row.tokens[0] == 9 and row.log_probabilities[0] == 0 > row.log_probabilities[1]


def test_a_forced_end_is_certain_only_at_the_limit():
    """Over fixed tensors, too, where a row that ends has no more room."""
    model = tiny.seq2seq("marian")
    eos, sources = model.config.eos_token_id, tiny.sources(model, 8)
    config = transformers.GenerationConfig(**(model.generation_config.to_dict() | {"forced_eos_token_id": eos}))
    runs = []
    for graphs in (False, True):
        served = Seq2Seq(copy.copy(model.model), model.config, None, config)
        served.model.graphs = graphs
        runs.append([row.log_probabilities for row in served.generate(sources, max_new_tokens=9, scores=True).rows])
    for one, other in zip(*runs, strict=True):
        assert one == pytest.approx(other, abs=1e-9)
        assert (one[-1] == 0) == (len(one) == 9)
    assert len({len(one) for one in runs[0]}) > 2


@pytest.mark.parametrize(
    ("make", "said"),
    [(lambda: Fallback((0.0,)), r"temperatures of the fallback are \(0.0,\); allowed: numbers above 0"),
     (lambda: Fallback(0.2), "temperatures of the fallback are 0.2; allowed: numbers"),
     (lambda: Fallback((None,)), "allowed: numbers above 0, rising"),
     (lambda: Fallback((float("inf"),)), "allowed: numbers above 0, rising"),
     (lambda: ours(0, [], fallback=True), "fallback is a bool; allowed: a Fallback, or None"),
     (lambda: ours(0, [], initial_prompt=5), "initial_prompt is a int; allowed: a text"),
     (lambda: ours(0, tiny_sound.sounds(2), numbers=[1]), "numbers are \\[1\\]; allowed: 2 different ones from 0 to"),
     (lambda: ours(0, tiny_sound.sounds(2), numbers=[1, 1]), "allowed: 2 different ones"),
     (lambda: ours(0, tiny_sound.sounds(1), numbers=[1.0]), "allowed: 1 different ones"),
     (lambda: Fallback((0.4, 0.2)), "allowed: numbers above 0, rising"),
     (lambda: Fallback(no_speech=1.5), "no_speech is 1.5; allowed: from 0.0 to 1.0"),
     (lambda: Fallback(log_probability=0.5), "log_probability is 0.5; allowed: at most 0.0"),
     (lambda: ours(0, tiny_sound.sounds(1), initial_prompt="w1 <|endoftext|>"), "initial_prompt holds <|endoftext|>"),
     (lambda: tiny.seq2seq("t5").generate([[5, 1]], Beam(2), scores=True), "scores are not for OfficialBiLD, nor for")],
)  # fmt: skip
def test_what_is_refused(make, said):
    with pytest.raises(UsageError, match=said):
        make()


def test_a_model_that_does_not_know_what_was_before():
    base = tiny_sound.seq2seq(0)
    config = copy.deepcopy(base.generation_config)
    config.prev_sot_token_id = None
    model = Seq2Seq(base.model, base.config, None, config)
    model.extractor = base.extractor
    with pytest.raises(UsageError, match=r"does not say what <\|startofprev\|> is"):
        transcribe(model, tiny_sound.sounds(1), condition_on_previous=True)
    model = Seq2Seq(base.model, base.config, None, base.generation_config)
    model.extractor = base.extractor
    with pytest.raises(UsageError, match="initial_prompt is a text, and this model was loaded without a tokenizer"):
        transcribe(model, tiny_sound.sounds(1), initial_prompt="Hello")
    with pytest.raises(UsageError, match="compression_ratio is of texts, and this model was loaded without a token"):
        transcribe(model, tiny_sound.sounds(1), fallback=Fallback())
    assert transcribe(model, tiny_sound.sounds(1), fallback=Fallback(compression_ratio=None)).transcripts[0].segments
