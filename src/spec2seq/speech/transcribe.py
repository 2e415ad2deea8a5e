"""Sounds of any length through a model that hears a window at a time (Radford et al. 2023, section 3.8)."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spec2seq.api import Method, Seq2Seq
from spec2seq.config import check_range
from spec2seq.decoding.methods import Greedy
from spec2seq.decoding.stats import Stats
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.runner import Runner
from spec2seq.speech.audio import read_audio
from spec2seq.speech.timestamps import TimestampRules, segments
from spec2seq.speech.vocabulary import SECONDS, SpeechVocabulary

PLACE = 2  # frames of a spectrogram to a timestamp
MOST_SOUNDS = 1 << 20  # of a call, so that no window is drawn as another one is


@dataclass(frozen=True)
class Segment:
    """What was said from `start` to `end`, in seconds; `tokens` with the timestamps."""

    start: float
    end: float
    text: str | None
    tokens: list[int]


@dataclass(frozen=True)
class Transcript:
    """Of one sound of so many `seconds`: its text, the code of its language (None: the model knows one), and its
    segments; without timestamps the whole sound is one."""

    text: str
    language: str | None
    seconds: float
    segments: list[Segment]


@dataclass(frozen=True)
class Transcription:
    """The transcripts in the order of the sounds, and the counts and seconds of the run."""

    transcripts: list[Transcript]
    stats: Stats

    @property
    def texts(self) -> list[str]:
        return [transcript.text for transcript in self.transcripts]


@dataclass
class _Sound:
    """On its way: `features` `[bins, frames]`, of which `seek` are understood. `draws` is what the next window is drawn
    by, where it is: no other window has it."""

    features: Tensor
    frames: int
    seconds: float
    timestamps: bool
    draws: int = 0
    seek: int = 0
    language: str | None = None
    segments: list[Segment] = field(default_factory=list)


def transcribe(
    model: Seq2Seq,
    sounds: Sequence[Any],
    method: Method | None = None,
    *,
    language: str | None = None,
    task: str = "transcribe",
    timestamps: bool | None = None,
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
        language: a code or an English name; None: what each sound's first window sounds like, which takes a further
            pass of the encoder.
        task: "transcribe", or "translate" into English.
        timestamps: whether to say when something was said; None: where a sound is longer than a window of the model,
            which needs them.
        max_new_tokens: the most tokens for a window.
        batch_size: windows in flight.
        progress: called with the seconds of sound that were understood since the last time.
        stats: counts are added to these.
        numbers: by which sampled sounds are drawn, one for each below 2 ** 20; None: 0, 1, 2…

    Raises UsageError for a model that does not hear, and for settings that it does not know; Spec2SeqError, naming the
    sound, for one that cannot be read or is too long for a decoding without timestamps.
    """
    if isinstance(sounds, str) or not isinstance(sounds, Sequence):
        raise UsageError(f"sounds is a {type(sounds).__name__}; pass a list of sounds")
    check_range("batch_size", batch_size, low=1)
    words = SpeechVocabulary.of(model)
    spoken = words.language(language)
    words.prompt(spoken or next(iter(words.languages), None), task, True)  # raises for what there is not
    if model.extractor is None:
        raise UsageError("this model has no feature extractor, which makes spectrograms; from_transformers takes one")
    if model.extractor.feature_size != model.model.architecture.sound.bins:
        bins = model.model.architecture.sound.bins
        raise UsageError(f"the feature extractor makes {model.extractor.feature_size} bins; the model hears {bins}")
    heard = [_read(model, sound, f"sound {number}", timestamps) for number, sound in enumerate(sounds, 1)]
    for number, sound in zip(range(len(heard)) if numbers is None else numbers, heard, strict=True):
        sound.draws = number
        sound.language = spoken or _detect(model, words, sound)
    stats = Stats() if stats is None else stats
    for timed in (False, True):
        going = [sound for sound in heard if sound.timestamps is timed]
        hearing = _hearing(model, words) if timed else model
        while going:
            _round(hearing, words, going, method or Greedy(), task, max_new_tokens, batch_size, stats, progress)
            going = [sound for sound in going if sound.seek < sound.frames]
            for sound in going:
                sound.draws += MOST_SOUNDS
    return Transcription([_transcript(sound) for sound in heard], stats)


def _hearing(model: Seq2Seq, words: SpeechVocabulary) -> Seq2Seq:
    """The model with the rules of timestamps."""
    other = copy.copy(model)
    latest = model.settings.get("max_initial_timestamp_index")
    other.more_processors = (TimestampRules(words.no_timestamps, model.eos_token_ids[0], latest),)
    return other


def _read(model: Seq2Seq, sound: Any, where: str, timestamps: bool | None) -> _Sound:
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
    return _Sound(found.input_features[0], frames, len(samples) / extractor.sampling_rate, timed)


def _window(model: Seq2Seq, sound: _Sound) -> Tensor:
    """The next one, `[places, 2 * bins]`."""
    shape = model.model.architecture.sound
    cut = sound.features[:, sound.seek : sound.seek + PLACE * shape.places]
    cut = torch.nn.functional.pad(cut, (0, PLACE * shape.places - cut.shape[1]))
    return cut.T.reshape(shape.places, -1)


@torch.inference_mode()
def _detect(model: Seq2Seq, words: SpeechVocabulary, sound: _Sound) -> str | None:
    """The language that the first window sounds most like."""
    if not words.languages:
        return None
    verifier = model.model
    window = _window(model, sound)[None].to(verifier.device)
    lengths = torch.tensor([window.shape[1]], device=verifier.device)
    start = torch.full_like(lengths[:, None], verifier.architecture.decoder_start_token_id)
    cache = verifier.new_cache(1)
    verifier.admit(cache, 0, verifier.encode(window, lengths))
    logits = verifier.decode_block(cache, start, torch.zeros_like(lengths), 1, uniform=True).logits[0, 0]
    codes = list(words.languages)
    return codes[int(logits[[words.languages[code] for code in codes]].argmax())]


def _round(
    model: Seq2Seq, words: SpeechVocabulary, sounds: list[_Sound], method: Method, task: str,
    max_new_tokens: int | None, batch_size: int, stats: Stats, progress: Callable[[float], None] | None,
) -> None:  # fmt: skip
    """One window of each sound."""
    timed = sounds[0].timestamps
    prompts = {sound.draws: words.prompt(sound.language, task, timed) for sound in sounds}
    windows = [_window(model, sound) for sound in sounds]
    run = Runner(model, method, max_new_tokens, batch_size, False, False, windows, prompts)
    run.stats, by_index = stats, {sound.draws: sound for sound in sounds}
    for index, completion in run.each(windows, list(by_index)):
        sound = by_index[index]
        began = sound.seek
        _understood(model, words, sound, [token for token in completion.tokens if token not in model.eos_token_ids])
        if progress is not None:
            progress((min(sound.seek, sound.frames) - began) / PLACE * SECONDS)


def _understood(model: Seq2Seq, words: SpeechVocabulary, sound: _Sound, tokens: list[int]) -> None:
    """Add a window's segments."""
    places = model.model.architecture.sound.places
    left = min(places, -(-(sound.frames - sound.seek) // PLACE))
    offset = sound.seek / PLACE * SECONDS
    found, reached = [(0, left, tokens)], left
    if sound.timestamps:
        found, reached = segments(tokens, words.first_timestamp, left)
    for start, end, part in found:
        said = None
        if model.tokenizer is not None:
            spoken = [token for token in part if token < words.first_timestamp]
            said = model.tokenizer.decode(spoken, skip_special_tokens=True)
        sound.segments.append(Segment(round(offset + start * SECONDS, 2), round(offset + end * SECONDS, 2), said, part))
    # A window in which nothing was understood would be heard for ever.
    sound.seek += PLACE * (reached or left)


def _transcript(sound: _Sound) -> Transcript:
    text = "".join(segment.text or "" for segment in sound.segments)
    return Transcript(text.strip(), sound.language, sound.seconds, sound.segments)
