"""When words were said, against what Transformers looks at and the way it goes through it."""

import copy
import math

import numpy as np
import pytest
import tiny_sound
import tokenizers
import torch
import transformers
from models.native_models import DTYPES, needs_compiler
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

from spec2seq import Assisted, Beam, Lookup, Seq2Seq, UsageError
from spec2seq.models import native
from spec2seq.models.quantize import quantize
from spec2seq.speech.transcribe import transcribe
from spec2seq.speech.words import alignment_heads, attention_scores, first_places, starts, words_of

HEADS = ((0, 1), (1, 0), (1, 3))
TOLD = [tiny_sound.IDS[f"<|{name}|>"] for name in ("startoftranscript", "en", "transcribe", "notimestamps")]
CAP = 30


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity_warning()


@pytest.fixture
def model() -> Seq2Seq:
    """With a tokenizer whose words begin with spaces, every third token but a part of one."""
    made = copy.copy(tiny_sound.seq2seq(0))
    words = copy.deepcopy(tiny_sound.tokenizer())
    names = {f"w{i}" if i % 3 == 0 else f"Ġw{i}": i for i in range(tiny_sound.WORDS)}
    names |= {name: index for name, index in words.get_vocab().items() if index >= tiny_sound.WORDS}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(names, unk_token="Ġw1"))
    backend.decoder = tokenizers.decoders.ByteLevel()
    made.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    made.tokenizer.add_special_tokens({"additional_special_tokens": tiny_sound.SPECIAL[1:]})
    made.generation_config = copy.deepcopy(made.generation_config)
    made.generation_config.alignment_heads = [list(one) for one in HEADS]
    return made


def features(sounds) -> torch.Tensor:
    made = tiny_sound.extractor()(sounds, sampling_rate=tiny_sound.RATE, return_tensors="pt")
    return made.input_features.double()


def their_weights(sound: np.ndarray, tokens: list[int]) -> torch.Tensor:
    """Transformers' cross-attention `[heads, tokens, places]`."""
    module = copy.deepcopy(tiny_sound.transformers_model(0))
    module.set_attn_implementation("eager")
    found = module(features([sound]), decoder_input_ids=torch.tensor([tokens]), output_attentions=True)
    return torch.stack([found.cross_attentions[layer][0, head] for layer, head in HEADS]).detach()


def test_the_scores_are_those_of_transformers_heads(model):
    sound, tokens = tiny_sound.sounds(1)[0], [*TOLD, 4, 9, 9, 31, tiny_sound.END]
    heard, lengths = model.source_ids(sound, "a"), torch.tensor([tiny_sound.PLACES])
    cache = model.model.new_cache(1)
    with torch.inference_mode():
        model.model.admit(cache, 0, model.model.encode(heard[None], lengths))
        found = attention_scores(model.model, cache, tiny_sound.PLACES, tokens, HEADS)
    torch.testing.assert_close(found.softmax(-1).double(), their_weights(sound, tokens), atol=1e-6, rtol=1e-5)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_in_the_compiled_executor(model, dtype):
    """Nearly PyTorch's, in int8 over a source whose keys are rounded to 16 bits."""
    sound, tokens = tiny_sound.sounds(1)[0], [*TOLD, 4, 9, 9, 31, tiny_sound.END]
    heard, lengths, found = model.source_ids(sound, "a").float(), torch.tensor([tiny_sound.PLACES]), []
    for attach in (lambda model: None, native.attach):
        single = copy.deepcopy(model.model).float()
        if dtype == "int8":
            quantize(single)
        attach(single)
        with torch.inference_mode():
            cache = single.new_cache(1)
            single.admit(cache, 0, single.encode(heard[None], lengths))
            cache.source.copy_(cache.source.half() if dtype == "int8" else cache.source)
            found.append(attention_scores(single, cache, tiny_sound.PLACES, tokens, HEADS))
    difference = (found[0] - found[1]).abs()
    assert difference.median() < (1e-6 if dtype == "float32" else 2e-3) * found[0].abs().max()


@pytest.mark.parametrize("seed", range(20))
def test_the_way_is_transformers(seed):
    draws = np.random.default_rng(seed)
    costs = draws.standard_normal((draws.integers(1, 12), draws.integers(1, 40)))
    if seed % 2:
        costs = costs.round()  # many ways cost the same
    rows, columns = _dynamic_time_warping(costs)
    wanted = [columns[rows == row].min() for row in range(len(costs))]
    assert first_places(costs).tolist() == wanted


@pytest.mark.parametrize("places", [50, 23, 3])
def test_starts_are_smoothed_as_in_transformers(places):
    torch.manual_seed(places)
    scores = torch.randn(3, 9, 50)
    weights = scores[..., :places].softmax(-1)
    weights = (weights - weights.mean(1, keepdim=True)) / weights.std(1, keepdim=True, unbiased=False)
    matrix = _median_filter(weights, 7).mean(0)[3:-1]
    rows, columns = _dynamic_time_warping(-matrix.double().numpy())
    assert starts(scores, places, 4, 7).tolist() == [columns[rows == row].min() for row in range(5)]


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("method", [None, Lookup(3), "early exit"])
def test_words_of_sounds(model, timestamps, method):
    """From the beginning of the sound on, one after the other, by the weights that Transformers has."""
    method = Assisted(model.early_exit(1), 2) if method == "early exit" else method
    sounds = tiny_sound.sounds(5)
    found = transcribe(model, sounds, method, language="en", timestamps=timestamps, word_timestamps=True,
                       max_new_tokens=CAP, batch_size=2)  # fmt: skip
    plain = transcribe(model, sounds, method, language="en", timestamps=timestamps, max_new_tokens=CAP)
    assert found.texts == plain.texts
    several = 0
    for sound, heard in zip(sounds, found.transcripts, strict=True):
        assert len(heard.windows) == 1
        text = [token for token in heard.windows[0].tokens if token < tiny_sound.END]
        places = min(tiny_sound.PLACES, math.ceil(math.ceil(len(sound) / 160) / 2))
        weights = their_weights(sound, [*TOLD, *text, tiny_sound.END])
        wanted = 0.02 * starts(weights.log().float(), places, 4, 7)
        known, words = 0, []
        for segment in heard.segments:
            assert "".join(word.text for word in segment.words) == segment.text
            part = [token for token in segment.tokens if token < tiny_sound.END]
            for word, (said, count) in zip(segment.words, words_of(model.tokenizer, part, "en"), strict=True):
                assert word.text == said
                assert (word.start, word.end) == pytest.approx((wanted[known], wanted[known + count]))
                known += count
            words += segment.words
        assert all(0 <= word.start <= word.end <= 1.0 for word in words)
        several += len(words) > 2
    assert several >= 2


def test_long_sounds_go_on_behind_a_window(model):
    sound = np.concatenate(tiny_sound.sounds(4, 0.9, 2))
    for more in ({}, {"condition_on_previous": True, "initial_prompt": "w7"}):
        found = transcribe(model, [sound], language="en", word_timestamps=True, max_new_tokens=20, **more)
        segments = found.transcripts[0].segments
        assert len(found.transcripts[0].windows) > 2 and segments[-1].words[-1].end > 1.0
        for window in found.transcripts[0].windows:
            began = window.frame / 100
            inside = [one for one in segments if one.words and began <= one.words[0].start <= began + 1]
            assert inside


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_in_the_compiled_executor(model, dtype):
    single = copy.copy(model)
    single.model = copy.deepcopy(model.model).float()
    if dtype == "int8":
        quantize(single.model)
    native.attach(single.model)
    asked = {"language": "en", "word_timestamps": True, "max_new_tokens": CAP}
    sounds = tiny_sound.sounds(6)
    found, wanted = (transcribe(one, sounds, **asked).transcripts for one in (single, model))
    same = [mine == theirs for mine, theirs in zip(found, wanted, strict=True)]
    assert all(segment.words is not None for one in found for segment in one.segments)
    assert dtype == "int8" or sum(same) >= 5  # a tie of float32 may lead another way


def test_heads():
    assert alignment_heads({}, 4, 2) == ((2, 0), (2, 1), (3, 0), (3, 1))
    assert alignment_heads({"alignment_heads": [[1, 1]]}, 4, 2) == ((1, 1),)
    with pytest.raises(UsageError, match="alignment_heads=.* the decoder has 4 layers of 2 heads"):
        alignment_heads({"alignment_heads": [[4, 0]]}, 4, 2)


@pytest.mark.parametrize("ends", [[9, tiny_sound.END], [tiny_sound.END, 9]])
def test_of_several_end_tokens_some_may_be_words(model, ends):
    model.generation_config.eos_token_id = ends
    said = {"language": "en", "max_new_tokens": CAP, "timestamps": True}
    found = transcribe(model, tiny_sound.sounds(5), **said, word_timestamps=True)
    plain = transcribe(model, tiny_sound.sounds(5), **said)
    assert found.texts == plain.texts and any(found.texts)
    for segment in (segment for one in found.transcripts for segment in one.segments):
        assert "".join(word.text for word in segment.words).split() == segment.text.split()
    written = [token for one in found.transcripts for window in one.windows for token in window.tokens]
    assert any(9 < token < tiny_sound.END for token in written)
    model.tokenizer = tiny_sound.tokenizer()
    transcribe(model, tiny_sound.sounds(1), **said, initial_prompt="w12")


@pytest.mark.parametrize("width", [0, 8])
def test_an_even_median_filter_is_refused(model, width):
    model.config = copy.deepcopy(model.config)
    model.config.median_filter_width = width
    with pytest.raises(UsageError, match=f"median_filter_width of this model is {width}; allowed: an odd number"):
        transcribe(model, tiny_sound.sounds(1), language="en", word_timestamps=True)


def test_what_has_no_words(model):
    with pytest.raises(UsageError, match="word_timestamps are not for Beam"):
        transcribe(model, tiny_sound.sounds(1), Beam(2), language="en", word_timestamps=True)
    mute = copy.copy(model)
    mute.tokenizer = None
    with pytest.raises(UsageError, match="word_timestamps are of words, and this model was loaded without"):
        transcribe(mute, tiny_sound.sounds(1), language="en", word_timestamps=True)
