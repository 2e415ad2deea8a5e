"""Sounds through a tiny model that hears, token for token as Transformers' own generation, whoever drafts."""

import copy
import functools

import numpy as np
import pytest
import tiny
import tiny_sound
import torch
import transformers
from models.native_models import needs_compiler

from spec2seq import (
    Assisted,
    Beam,
    BiLD,
    Greedy,
    Lookup,
    OfficialBiLD,
    Sample,
    Seq2Seq,
    Spec2SeqError,
    SpecDec,
    UsageError,
)
from spec2seq.models import native
from spec2seq.models.quantize import quantize
from spec2seq.speech.transcribe import transcribe

CAP = 30
SEEDS = (0, 3)  # models whose outputs end at different steps


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity_warning()


def features(sound: np.ndarray, **more) -> torch.Tensor:
    made = tiny_sound.extractor()(sound, sampling_rate=tiny_sound.RATE, return_tensors="pt", **more)
    return made.input_features.double()


def long_sounds(count: int = 4) -> list[np.ndarray]:
    """Of several windows."""
    return [np.concatenate(tiny_sound.sounds(5, 0.9, number)) for number in range(count)]


def tokens(transcription) -> list[list[int]]:
    return [sum((segment.tokens for segment in one.segments), []) for one in transcription.transcripts]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("beams", [1, 3])
def test_a_window_as_in_transformers(seed, beams):
    model, theirs, sounds = tiny_sound.seq2seq(seed), tiny_sound.transformers_model(seed), tiny_sound.sounds(8)
    wanted = theirs.generate(features(sounds), language="en", task="translate", max_new_tokens=CAP, num_beams=beams)
    found = transcribe(model, sounds, Beam(beams) if beams > 1 else None, language="English", task="translate",
                       max_new_tokens=CAP, batch_size=3)  # fmt: skip
    assert tokens(found) == [[token for token in row if token != tiny_sound.END] for row in wanted.tolist()]
    assert len({len(row) for row in tokens(found)}) >= 3
    assert [one.language for one in found.transcripts] == ["en"] * 8
    assert found.texts[0] == " ".join(f"w{token}" for token in tokens(found)[0] if token < tiny_sound.WORDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_timestamps_as_in_transformers(seed):
    model, theirs, sounds = tiny_sound.seq2seq(seed), tiny_sound.transformers_model(seed), tiny_sound.sounds(8)
    found = transcribe(model, sounds, language="de", timestamps=True, max_new_tokens=CAP)
    for sound, row in zip(sounds, tokens(found), strict=True):
        wanted = theirs.generate(features(sound), language="de", task="transcribe", max_new_tokens=CAP,
                                 return_timestamps=True, return_segments=True)  # fmt: skip
        assert row == sum((segment["tokens"].tolist() for segment in wanted["segments"][0]), [])
    assert any(token >= tiny_sound.FIRST for row in tokens(found) for token in row)


@pytest.mark.parametrize("seed", SEEDS)
def test_long_sounds_as_in_transformers(seed):
    model, theirs, sounds = tiny_sound.seq2seq(seed), tiny_sound.transformers_model(seed), long_sounds()
    found = transcribe(model, sounds, language="fr", max_new_tokens=CAP, batch_size=3)
    for sound, one in zip(sounds, found.transcripts, strict=True):
        spectrogram = features(sound, truncation=False, padding="longest")
        wanted = theirs.generate(
            spectrogram, language="fr", task="transcribe", max_new_tokens=CAP, return_timestamps=True,
            return_segments=True, attention_mask=torch.ones_like(spectrogram[:, 0]).long(),
        )["segments"][0]  # fmt: skip
        assert [segment.tokens for segment in one.segments] == [segment["tokens"].tolist() for segment in wanted]
        for ours, segment in zip(one.segments, wanted, strict=True):
            assert (ours.start, ours.end) == pytest.approx((float(segment["start"]), float(segment["end"])))
        assert len(wanted) > 2 and one.seconds == len(sound) / tiny_sound.RATE


def test_without_a_cap_as_in_transformers():
    model, theirs, sounds = tiny_sound.seq2seq(0), tiny_sound.transformers_model(0), tiny_sound.sounds(8)
    wanted = theirs.generate(features(sounds), language="en", task="transcribe").tolist()
    found = tokens(transcribe(model, sounds, language="en"))
    assert found == [[token for token in row if token != tiny_sound.END] for row in wanted]
    assert max(map(len, found)) == 60  # 64 positions without the decoder's start and three tokens of the prompt


@pytest.mark.parametrize("bins", [80, 128])  # of Whisper and of large-v3
@torch.inference_mode()
def test_states_and_logits_as_in_transformers(bins):
    torch.manual_seed(0)
    config = tiny_sound.config()
    config.num_mel_bins = bins
    theirs = transformers.WhisperForConditionalGeneration(config).double().eval()
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins, chunk_length=1)
    model, sounds = Seq2Seq.from_transformers(theirs, None, extractor), tiny_sound.sounds(3)
    heard = extractor(sounds, sampling_rate=tiny_sound.RATE, return_tensors="pt").input_features.double()
    windows = torch.stack([model.source_ids(sound, "a sound") for sound in sounds])
    encoded = model.model.encode(windows, torch.full((3,), tiny_sound.PLACES))
    torch.testing.assert_close(encoded.states, theirs.get_encoder()(heard).last_hidden_state, atol=1e-9, rtol=0)
    ids, cache = torch.randint(tiny_sound.VOCABULARY, (3, 7)), model.model.new_cache(3)
    model.model.admit(cache, 0, encoded)
    found = model.model.decode_block(cache, ids, torch.zeros(3, dtype=torch.long), 7, uniform=True).logits
    torch.testing.assert_close(found, theirs(heard, decoder_input_ids=ids).logits, atol=1e-9, rtol=0)


FORCED = [[1, tiny_sound.IDS["<|de|>"]], [2, tiny_sound.IDS["<|translate|>"]]]


@pytest.mark.parametrize(("settings", "told"), [
    ({"language": "<|de|>", "task": "translate"}, ["de", "translate"]),
    ({"language": "german", "return_timestamps": True}, ["de", "transcribe"]),
    ({"forced_decoder_ids": FORCED}, ["de", "translate"]),
    ({"forced_decoder_ids": [[1, None], FORCED[1]]}, ["translate"]),
    ({"language": "fr", "forced_decoder_ids": FORCED}, ["fr", "transcribe"]),
])  # fmt: skip
def test_what_the_generation_config_says_as_in_transformers(settings, told):
    theirs, sounds = copy.deepcopy(tiny_sound.transformers_model(0)), tiny_sound.sounds(3)
    vars(theirs.generation_config).update(settings)
    model = Seq2Seq.from_transformers(theirs, tiny_sound.tokenizer(), tiny_sound.extractor())
    found = transcribe(model, sounds, max_new_tokens=CAP)
    for sound, row, one in zip(sounds, tokens(found), found.transcripts, strict=True):
        wanted = theirs.generate(features(sound), max_new_tokens=CAP)[0].tolist()
        assert row == [token for token in wanted if token != tiny_sound.END]
        prompt = [token for token in one.windows[0].prompt if token != tiny_sound.SILENT]
        assert prompt[-len(told) :] == [tiny_sound.IDS[f"<|{name}|>"] for name in told]
    asked = transcribe(model, sounds, language="<|en|>", task="transcribe", timestamps=False, max_new_tokens=CAP)
    assert tokens(asked) == tokens(transcribe(tiny_sound.seq2seq(0), sounds, language="en", max_new_tokens=CAP))


def test_the_language_is_heard_as_in_transformers():
    model, theirs, sounds = tiny_sound.seq2seq(0), tiny_sound.transformers_model(0), tiny_sound.sounds(8)
    heard = theirs.detect_language(features(sounds)).tolist()
    wanted = [tiny_sound.SPECIAL[token - tiny_sound.END].strip("<|>") for token in heard]
    found = transcribe(model, sounds, max_new_tokens=CAP)
    assert [one.language for one in found.transcripts] == wanted
    assert len(set(wanted)) > 1
    for sound, code, one in zip(sounds, wanted, found.transcripts, strict=True):
        assert transcribe(model, [sound], language=code, max_new_tokens=CAP).transcripts == [one]


def test_a_model_of_one_language():
    model, theirs = tiny_sound.seq2seq(0, english=True), tiny_sound.transformers_model(0, True)
    sounds = tiny_sound.sounds(4)
    found = transcribe(model, sounds, max_new_tokens=CAP)
    wanted = theirs.generate(features(sounds), max_new_tokens=CAP)
    assert tokens(found) == [[token for token in row if token != tiny_sound.END] for row in wanted.tolist()]
    assert [one.language for one in found.transcripts] == [None] * 4
    assert transcribe(model, sounds, language="English", max_new_tokens=CAP).transcripts == found.transcripts
    for setting, said in ({"language": "de"}, "knows English alone"), ({"task": "translate"}, "allowed: transcribe"):
        with pytest.raises(UsageError, match=said):
            transcribe(model, sounds, **setting)


@functools.cache
def drafted(name: str):
    model = tiny_sound.seq2seq(0)
    little = tiny.noisy_copy(model, 0.02)
    return {
        "assisted": Assisted(little.drafter(), 4), "early exit": Assisted(model.early_exit(1), 2),
        "block": SpecDec(tiny.cached_drafter(model), 3), "lookup": Lookup(4),
        "bild": BiLD(little.drafter(), rollback_threshold=0.0, starts="verifier", verify_tail=True),
    }[name]  # fmt: skip


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("name", ["assisted", "early exit", "block", "lookup", "bild"])
def test_drafts_change_nothing(name, timestamps):
    model, sounds = tiny_sound.seq2seq(0), tiny_sound.sounds(9)
    wanted = transcribe(model, sounds, language="en", timestamps=timestamps, max_new_tokens=CAP, batch_size=1)
    for batch_size in (1, 4):
        found = transcribe(model, sounds, drafted(name), language="en", timestamps=timestamps, max_new_tokens=CAP,
                           batch_size=batch_size)  # fmt: skip
        assert found.transcripts == wanted.transcripts
        assert found.stats.drafted > 0
    if name == "assisted":
        assert found.stats.acceptance > 0.5


def test_drafts_of_long_sounds():
    model, sounds = tiny_sound.seq2seq(0), long_sounds()
    wanted = transcribe(model, sounds, language="en", max_new_tokens=CAP)
    found = transcribe(model, sounds, drafted("assisted"), language="en", max_new_tokens=CAP)
    assert found.transcripts == wanted.transcripts
    assert found.stats.verifier_calls < 0.7 * wanted.stats.verifier_calls


def test_an_adaptive_draft_length():
    """Which measures what iterations take, over sounds that it makes up."""
    model, sounds = tiny_sound.seq2seq(0), tiny_sound.sounds(6)
    little = tiny.noisy_copy(model, 0.02).drafter()
    wanted = transcribe(model, sounds, language="en", max_new_tokens=CAP).transcripts
    for method in (Assisted(little), Lookup()):
        assert transcribe(model, sounds, method, language="en", max_new_tokens=CAP).transcripts == wanted


def test_draws_do_not_depend_on_the_batch():
    model, sounds = tiny_sound.seq2seq(0), tiny_sound.sounds(6)
    settings = {"language": "en", "max_new_tokens": CAP}
    runs = [transcribe(model, sounds, Sample(seed=1), batch_size=size, **settings) for size in (1, 4)]
    assert runs[0].transcripts == runs[1].transcripts


def test_over_fixed_tensors():
    """As graphs on a GPU would be of them, where nothing but the model's own settings is asked for."""
    base = tiny_sound.seq2seq(0)
    model = Seq2Seq(copy.copy(base.model), base.config, base.tokenizer, copy.deepcopy(base.generation_config))
    model.generation_config.suppress_tokens = model.generation_config.begin_suppress_tokens = None
    model.extractor = base.extractor
    sounds = tiny_sound.sounds(9)
    for method in (Greedy(), SpecDec(tiny.cached_drafter(model), 3)):
        wanted = transcribe(model, sounds, method, language="en", max_new_tokens=CAP, batch_size=4)
        model.model.graphs = True
        found = transcribe(model, sounds, method, language="en", max_new_tokens=CAP, batch_size=4)
        model.model.graphs = False
        assert found.transcripts == wanted.transcripts


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_in_the_compiled_executor(dtype):
    base, sounds = tiny_sound.seq2seq(0), tiny_sound.sounds(8)
    models = []
    for _ in range(2):
        made = copy.deepcopy(base.model).float()
        if dtype == "int8":
            quantize(made)
        models.append(Seq2Seq(made, base.config, base.tokenizer, base.generation_config))
        models[-1].extractor = base.extractor
    native.attach(models[1].model)
    window = torch.randn(9, tiny_sound.PLACES, 2 * tiny_sound.BINS)
    states = [one.model.encode(window, torch.full((9,), tiny_sound.PLACES)).states for one in models]
    apart = (states[0] - states[1]).abs().amax((1, 2)) / states[0].abs().max()
    assert apart.median() < 1e-6
    # Now and then a code is rounded the other way after another order of a sum, which moves that window's states.
    assert apart.max() < (0.02 if dtype == "int8" else 1e-6)
    wanted = transcribe(models[1], sounds, language="en", max_new_tokens=CAP, batch_size=1).transcripts
    methods = [Greedy(), Assisted(models[1].early_exit(1), 3), Lookup(3)]
    if dtype == "float32":  # a drafter starts from layers in floats
        methods.append(SpecDec(native_block(models[1]), 3))
    for method in methods:
        found = transcribe(models[1], sounds, method, language="en", max_new_tokens=CAP, batch_size=4)
        assert found.transcripts == wanted


def native_block(model: Seq2Seq):
    drafter = tiny.cached_drafter(model)
    native.attach(drafter.model)
    return drafter


@pytest.mark.parametrize("dtype", ["float64", "int8"])
def test_a_saved_model_comes_back(tmp_path, dtype):
    base = tiny_sound.seq2seq(0)
    model = Seq2Seq(copy.deepcopy(base.model), base.config, base.tokenizer, base.generation_config)
    model.extractor = base.extractor
    if dtype == "int8":
        model.model.float()
        quantize(model.model)
    model.save_pretrained(tmp_path / "model")
    back = Seq2Seq.from_pretrained(tmp_path / "model", dtype, executor="torch")
    runs = [transcribe(one, tiny_sound.sounds(3), max_new_tokens=CAP).transcripts for one in (model, back)]
    assert runs[0] == runs[1]
    if dtype == "float64":
        kind = transformers.WhisperForConditionalGeneration
        _, said = kind.from_pretrained(tmp_path / "model", output_loading_info=True)
        assert not said["missing_keys"] and not said["unexpected_keys"]


def test_generate_hears_windows():
    model, sounds = tiny_sound.seq2seq(0), tiny_sound.sounds(3)
    begins = [[tiny_sound.IDS["<|en|>"], tiny_sound.IDS["<|transcribe|>"], tiny_sound.SILENT]] * 3
    wanted = tokens(transcribe(model, sounds, language="en", max_new_tokens=CAP))
    for sources in (sounds, list(features(sounds).float())):
        found = model.generate(sources, max_new_tokens=CAP, prompts=begins)
        assert [[token for token in row if token != tiny_sound.END] for row in found.sequences] == wanted
    scores = model.score(sounds, [[*begin, *row] for begin, row in zip(begins, found.sequences, strict=True)])
    assert all(-1000 < score < 0 for score in scores)


@pytest.mark.parametrize(
    ("sounds", "settings", "said"),
    [(lambda: "a.wav", {}, "sounds is a str; pass a list of sounds"),
     (lambda: ["nowhere.wav"], {}, "nowhere.wav: no such file"),
     (lambda: [np.zeros((2, 5))], {}, r"sound 1 has the shape \[2, 5\]"),
     (lambda: [np.zeros(0)], {}, "sound 1: there are no samples"),
     (lambda: [np.zeros(9), np.array([0, np.nan])], {}, "sound 2: there are samples that are no numbers"),
     (lambda: [np.zeros(9)], {"language": "germn"}, "language is 'germn'; allowed: de, en, fr; did you mean german"),
     (lambda: [np.zeros(9)], {"language": 5}, "language is 5; allowed: a code"),
     (lambda: iter([np.zeros(9)]), {}, "sounds is a list_iterator; pass a list"),
     (lambda: [np.full(9, 1e300)], {}, "sound 1: there are samples that are no numbers"),
     (lambda: [np.zeros(9)], {"task": "sing"}, "task is 'sing'; allowed: transcribe, translate"),
     (lambda: [np.zeros(20_000)], {"timestamps": False}, "sound 1 is 1.2 seconds long; without timestamps"),
     (lambda: [np.zeros(9)], {"batch_size": 0}, "batch_size is 0"),
     (lambda: [np.zeros(9)], {"max_new_tokens": 62}, "max_new_tokens is 62; allowed: 1 to 61")],
)  # fmt: skip
def test_what_is_refused(sounds, settings, said):
    with pytest.raises(Spec2SeqError, match=said):
        transcribe(tiny_sound.seq2seq(0), sounds(), **settings)


def test_samples_may_be_tensors():
    model, (sound,) = tiny_sound.seq2seq(0), tiny_sound.sounds(1)
    wanted = transcribe(model, [sound], language="en", max_new_tokens=CAP).transcripts
    assert transcribe(model, [torch.tensor(sound)], language="en", max_new_tokens=CAP).transcripts == wanted
    rounded = torch.tensor(sound, requires_grad=True).bfloat16()
    assert transcribe(model, [rounded], language="en", max_new_tokens=CAP).transcripts[0].seconds == wanted[0].seconds


def test_what_windows_are_refused():
    model = tiny_sound.seq2seq(0)
    other = Seq2Seq.from_transformers(tiny_sound.transformers_model(0), tiny_sound.tokenizer())
    with pytest.raises(UsageError, match="this model has no feature extractor"):
        transcribe(other, [np.zeros(9)])
    wide = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    other = Seq2Seq.from_transformers(tiny_sound.transformers_model(0), tiny_sound.tokenizer(), wide)
    with pytest.raises(UsageError, match="the feature extractor makes 16 bins; the model hears 8"):
        transcribe(other, [np.zeros(9)])
    other.generation_config = transformers.GenerationConfig(no_timestamps_token_id=tiny_sound.SILENT)
    other.extractor = model.extractor
    with pytest.raises(Spec2SeqError, match="lacks lang_to_id or task_to_id, as old ones do"):
        transcribe(other, [np.zeros(9)])
    with pytest.raises(UsageError, match="the paper's drafter reads texts"):
        transcribe(model, [np.zeros(9)], SpecDec(tiny.paper_drafter(model), 3))
    for sound, said in (("a", "source 1 is no sound"), (np.zeros(20_000), "1.2 seconds long; the model hears 1"),
                        (np.zeros((3, 4)), r"shape \[3, 4\]; allowed: samples \[n\], or features")):  # fmt: skip
        with pytest.raises(Spec2SeqError, match=said):
            model.generate([sound])
    with pytest.raises(UsageError, match="marian model reads texts; transcribe is for models that hear"):
        transcribe(tiny.seq2seq("marian"), [np.zeros(9)])
    with pytest.raises(UsageError, match="takes no prompts"):
        transcribe(model, [np.zeros(9)], OfficialBiLD(tiny.noisy_copy(model, 0.02).drafter()))
    with pytest.raises(UsageError, match="eos_token_id is 60 and 0"):
        transcribe(model, [np.zeros(9)], Assisted(tiny.seq2seq("marian").drafter()))
