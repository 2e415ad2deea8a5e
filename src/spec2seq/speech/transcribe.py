"""Sounds of any length through a model that hears a window at a time (Radford et al. 2023, section 3.8)."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from spec2seq.api import Method, Seq2Seq
from spec2seq.config import check_range
from spec2seq.decoding.methods import Greedy, Speculative
from spec2seq.decoding.official import OfficialBiLD
from spec2seq.decoding.score import logits_behind
from spec2seq.decoding.stats import Stats
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.speech.audio import read_audio
from spec2seq.speech.fallback import Fallback
from spec2seq.speech.timestamps import TimestampRules
from spec2seq.speech.vocabulary import PREVIOUS, SpeechVocabulary
from spec2seq.speech.windows import Segment, Sound, Window, Windows, room_before, window_at
from spec2seq.speech.words import Listener, alignment_heads

MOST_SOUNDS = 1 << 20  # of a call, so that no window is drawn as another one is


@dataclass(frozen=True)
class Transcript:
    """Of one sound of so many `seconds`: its text, the code of its language (None: the model knows one), and its
    segments; without timestamps the whole sound is one. `windows` have what the model wrote, token for token."""

    text: str
    language: str | None
    seconds: float
    segments: list[Segment]
    windows: list[Window] = field(default_factory=list)


@dataclass(frozen=True)
class Transcription:
    """The transcripts in the order of the sounds, and the counts and seconds of the run."""

    transcripts: list[Transcript]
    stats: Stats

    @property
    def texts(self) -> list[str]:
        return [transcript.text for transcript in self.transcripts]


def transcribe(
    model: Seq2Seq,
    sounds: Sequence[Any],
    method: Method | None = None,
    *,
    language: str | None = None,
    task: str | None = None,
    timestamps: bool | None = None,
    fallback: Fallback | None = None,
    condition_on_previous: bool = False,
    initial_prompt: str | None = None,
    word_timestamps: bool = False,
    max_new_tokens: int | None = None,
    batch_size: int = 8,
    progress: Callable[[float], None] | None = None,
    stats: Stats | None = None,
    numbers: Sequence[int] | None = None,
) -> Transcription:
    """Write down what is said in every sound, whatever its length. Windows of several sounds are decoded together.

    Args:
        sounds: audio files, or arrays of samples `[n]`, mono, at the rate of the model's feature extractor.
        method: Greedy() by default; any preset or Speculative, or Beam.
        language: a code or an English name; None: what the generation config says, else what each sound's first window
            sounds like, which takes a further pass of the encoder.
        task: "transcribe", or "translate" into English; None: what the generation config says, else "transcribe".
        timestamps: whether to say when something was said; None: where the generation config says so, or a sound is
            longer than a window of the model, which needs them.
        fallback: when to hear a window again at higher temperatures, and when to take it for silent; None: never.
        condition_on_previous: each window goes on from what was understood of the ones before it, up to half of what
            the decoder has room for. Behind a window that was heard at a temperature of 0.5 or above that begins anew.
        initial_prompt: a text that every window goes on from, or what comes before the first one if they are
            conditioned: names and words that are to be expected, a style.
        word_timestamps: whether to say when each word was said, by what the decoder looks at: a pass more over every
            window. Not with Beam.
        max_new_tokens: the most tokens for a window.
        batch_size: windows in flight.
        progress: called with the seconds of sound that were understood since the last time.
        stats: counts are added to these.
        numbers: by which sampled sounds are drawn, one of its own for each, below 2 ** 20; None: 0, 1, 2…

    Raises UsageError for a model that does not hear, and for settings that it does not know; Spec2SeqError, naming the
    sound, for one that cannot be read or is too long for a decoding without timestamps.
    """
    if isinstance(sounds, str) or not isinstance(sounds, Sequence):
        raise UsageError(f"sounds is a {type(sounds).__name__}; pass a list of sounds")
    check_range("batch_size", batch_size, low=1)
    words = SpeechVocabulary.of(model)
    spoken, task = words.asked(model, language, task)
    if timestamps is None and model.settings.get("return_timestamps"):
        timestamps = True  # False, as Whisper's own configs have it, would be an error for a long sound
    told = words.prompt(spoken or next(iter(words.languages), None), task, bool(timestamps))
    if model.extractor is None:
        raise UsageError("this model has no feature extractor, which makes spectrograms; from_transformers takes one")
    if model.extractor.feature_size != model.model.architecture.sound.bins:
        bins = model.model.architecture.sound.bins
        raise UsageError(f"the feature extractor makes {model.extractor.feature_size} bins; the model hears {bins}")
    if isinstance(method, OfficialBiLD):
        raise UsageError("OfficialBiLD takes no prompts; use BiLD")
    _check_fallback(model, fallback)
    listener = _listener(model, words, method) if word_timestamps else None
    numbers = _checked_numbers(numbers, len(sounds))
    starting = _starting(model, words, initial_prompt)
    if condition_on_previous or starting:
        _check_before(model, words, told, [] if condition_on_previous else starting, max_new_tokens)
    heard = [read_sound(model, sound, f"sound {number}", timestamps) for number, sound in enumerate(sounds, 1)]
    stats = Stats() if stats is None else stats
    started = time.perf_counter()
    for number, sound in zip(numbers, heard, strict=True):
        sound.draws, sound.before = number, list(starting)
        sound.language = spoken or _detect(model, words, sound)
    stats.seconds += time.perf_counter() - started
    for timed in (False, True):
        going = [sound for sound in heard if sound.timestamps is timed]
        run = Windows(
            with_timestamps(model, words) if timed else model, words, method or Greedy(), task, fallback,
            starting, condition_on_previous, max_new_tokens, batch_size, stats, progress, listener,
        )  # fmt: skip
        while going:
            run.next_windows(going)
            going = [sound for sound in going if sound.seek < sound.frames]
            for sound in going:
                sound.draws += MOST_SOUNDS
    return Transcription([_transcript(sound) for sound in heard], stats)


def _check_fallback(model: Seq2Seq, fallback: Fallback | None) -> None:
    if fallback is None:
        return
    if not isinstance(fallback, Fallback):
        raise UsageError(f"fallback is a {type(fallback).__name__}; allowed: a Fallback, or None")
    if model.tokenizer is None and fallback.compression_ratio is not None:
        raise UsageError("compression_ratio is of texts, and this model was loaded without a tokenizer; allowed: None")


def _listener(model: Seq2Seq, words: SpeechVocabulary, method: Method | None) -> Listener:
    if method is not None and not isinstance(method, Speculative):
        raise UsageError(f"word_timestamps are not for {type(method).__name__}; allowed: greedy, sampling, drafts")
    if model.tokenizer is None:
        raise UsageError("word_timestamps are of words, and this model was loaded without a tokenizer")
    width = getattr(model.config, "median_filter_width", 7)
    if not isinstance(width, int) or width < 1 or width % 2 == 0:
        raise UsageError(f"median_filter_width of this model is {width!r}; allowed: an odd number from 1 on")
    shape = model.model.architecture.decoder
    heads = alignment_heads(model.settings, shape.layers, shape.heads)
    return Listener(model.model, heads, words.no_timestamps, words.text_end, width)


def _checked_numbers(numbers: Sequence[int] | None, count: int) -> Sequence[int]:
    if numbers is None:
        return range(count)
    fine = all(isinstance(number, int) and 0 <= number < MOST_SOUNDS for number in numbers)
    if not fine or len(set(numbers)) != count or len(numbers) != count:
        raise UsageError(f"numbers are {numbers!r}; allowed: {count} different ones from 0 to {MOST_SOUNDS - 1}")
    return numbers


def _starting(model: Seq2Seq, words: SpeechVocabulary, text: str | None) -> list[int]:
    """The tokens of an initial prompt."""
    if text is not None and not isinstance(text, str):
        raise UsageError(f"initial_prompt is a {type(text).__name__}; allowed: a text")
    if not text or not text.strip():
        return []
    if model.tokenizer is None:
        raise UsageError("initial_prompt is a text, and this model was loaded without a tokenizer")
    ids = model.tokenizer(f" {text.strip()}", add_special_tokens=False)["input_ids"]  # as Whisper's get_prompt_ids
    if special := [token for token in ids if token >= words.text_end]:
        raise UsageError(f"initial_prompt holds {model.tokenizer.decode(special[:1])}; allowed: plain text")
    return ids


def _check_before(
    model: Seq2Seq, words: SpeechVocabulary, told: list[int], starting: list[int], max_new_tokens: int | None
) -> None:
    """Whether there is room for what a window goes on from, an initial prompt that must stay whole."""
    if words.previous is None:
        raise UsageError(f"this model does not say what {PREVIOUS} is, which conditioning and an initial prompt need")
    model.max_new_tokens(max_new_tokens, len(told))  # raises for what is not possible
    room = room_before(model, told, max_new_tokens)
    if room < max(1, len(starting)):
        what = f"initial_prompt has {len(starting)} tokens" if starting else "condition_on_previous has no room"
        behind = "" if max_new_tokens is None else f" beside max_new_tokens={max_new_tokens}"
        raise UsageError(f"{what}; the decoder has places for {max(room, 0)}{behind}")


def with_timestamps(model: Seq2Seq, words: SpeechVocabulary) -> Seq2Seq:
    """The model under the rules of timestamps."""
    other = copy.copy(model)
    latest = model.settings.get("max_initial_timestamp_index")
    other.more_processors = (TimestampRules(words.no_timestamps, words.text_end, latest),)
    return other


def read_sound(model: Seq2Seq, sound: Any, where: str, timestamps: bool | None = None) -> Sound:
    """A sound on its way, and its spectrogram. Raises as `transcribe` does."""
    extractor = model.extractor
    samples, where = read_audio(sound, where, extractor.sampling_rate)
    long = len(samples) > extractor.n_samples
    if long and timestamps is False:
        window = extractor.n_samples / extractor.sampling_rate
        raise Spec2SeqError(
            f"{where} is {len(samples) / extractor.sampling_rate:.1f} seconds long; without timestamps the model hears "
            f"{window:.0f}"
        )
    # As Transformers: a short sound is followed by silence, a long one by nothing.
    shape = {"truncation": False, "padding": "longest"} if long else {}
    found = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt", **shape)
    frames = min(found.input_features.shape[2], -(-len(samples) // extractor.hop_length))
    timed = long if timestamps is None else timestamps
    return Sound(found.input_features[0], frames, len(samples) / extractor.sampling_rate, timed)


@torch.inference_mode()
def _detect(model: Seq2Seq, words: SpeechVocabulary, sound: Sound) -> str | None:
    """The language that the first window sounds most like."""
    if not words.languages:
        return None
    a = model.model.architecture
    logits = logits_behind(model.model, window_at(model, sound, 0), [a.decoder_start_token_id])[0, -1]
    codes = list(words.languages)
    return codes[int(logits[[words.languages[code] for code in codes]].argmax())]


def _transcript(sound: Sound) -> Transcript:
    text = "".join(segment.text or "" for segment in sound.segments)
    return Transcript(text.strip(), sound.language, sound.seconds, sound.segments, sound.windows)
