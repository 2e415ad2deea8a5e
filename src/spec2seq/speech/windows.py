"""Windows of sounds, one after the other: each is decoded, and says where the next begins."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from spec2seq.api import Method, Seq2Seq
from spec2seq.decoding.methods import Sample, Speculative
from spec2seq.decoding.scheduler import Completion
from spec2seq.decoding.score import logits_behind
from spec2seq.decoding.stats import Stats
from spec2seq.runner import Begin, Runner
from spec2seq.speech.fallback import HOT, Fallback
from spec2seq.speech.timestamps import segments
from spec2seq.speech.vocabulary import SECONDS, SpeechVocabulary
from spec2seq.speech.words import Listener, Word, starts, words_of

PLACE = 2  # frames of a spectrogram to a timestamp


@dataclass(frozen=True)
class Segment:
    """What was said from `start` to `end`, in seconds; `tokens` with the timestamps, one at each end. `temperature` is
    the one at which its window was heard, 0 where nothing was drawn; with a fallback `log_probability` is the mean of
    the window's tokens, in nats, or its best beam's score. `words`, if they were asked for, are those of `text`."""

    start: float
    end: float
    text: str | None
    tokens: list[int]
    log_probability: float | None = None
    temperature: float = 0.0
    words: list[Word] | None = None


@dataclass(frozen=True)
class Window:
    """One that was heard: it begins at this frame of its sound's spectrogram, and behind the `prompt`, the decoder's
    start first, the model wrote these tokens, the end token included. `silent`: they were not believed."""

    frame: int
    prompt: list[int]
    tokens: list[int]
    silent: bool = False


@dataclass
class Sound:
    """On its way: `features` `[bins, frames]`, of which `seek` are understood. `draws` is what the next window is drawn
    by, where it is: no other window has it. The next window goes on from the tokens `before`; `silent` says whether
    nothing is said in it, once that was asked."""

    features: Tensor
    frames: int
    seconds: float
    timestamps: bool
    draws: int = 0
    seek: int = 0
    language: str | None = None
    before: list[int] = field(default_factory=list)
    silent: bool | None = None
    segments: list[Segment] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)


def window_at(model: Seq2Seq, sound: Sound, frame: int) -> Tensor:
    """The window that begins there, `[places, 2 * bins]`."""
    shape = model.model.architecture.sound
    cut = sound.features[:, frame : frame + PLACE * shape.places]
    cut = torch.nn.functional.pad(cut, (0, PLACE * shape.places - cut.shape[1]))
    return cut.T.reshape(shape.places, -1)


class _Heard(NamedTuple):
    """What was written of a window, the end token included, at which temperature, how likely it is, and if words are
    asked for what the decoder's heads made of the window (`attention_scores`)."""

    tokens: list[int]
    temperature: float
    log_probability: float | None
    scores: Tensor | None


@dataclass(frozen=True)
class Windows:
    """Window after window of sounds that all have timestamps, or that all have none."""

    model: Seq2Seq
    words: SpeechVocabulary
    method: Method
    task: str
    fallback: Fallback | None
    starting: list[int]
    conditions: bool
    max_new_tokens: int | None
    batch_size: int
    stats: Stats
    progress: Callable[[float], None] | None
    listener: Listener | None

    def next_windows(self, sounds: list[Sound]) -> None:
        """One window of each sound, at as many temperatures as it takes."""
        windows = {sound.draws: window_at(self.model, sound, sound.seek) for sound in sounds}
        attempts = [(temperature_of(self.method.completed(self.model.settings)), self.method)]
        if self.fallback is not None:
            attempts += [(temperature, Sample(temperature, seed=self.fallback.draws(number)))
                         for number, temperature in enumerate(self.fallback.temperatures)]  # fmt: skip
        for number, (temperature, method) in enumerate(attempts, 1):
            again = []
            for sound, completion in self._decoded(sounds, windows, method):
                heard = _Heard(completion.tokens, temperature, self._log_probability(completion), completion.more)
                if number < len(attempts) and self._is_doubtful(sound, windows[sound.draws], heard):
                    again.append(sound)
                else:
                    self._take(sound, heard, self._is_silent(sound, windows[sound.draws], heard))
            sounds = again
            if not sounds:
                break

    def _decoded(
        self, sounds: list[Sound], windows: dict[int, Tensor], method: Method
    ) -> Iterator[tuple[Sound, Completion]]:
        by_draws = {sound.draws: sound for sound in sounds}
        chosen = [windows[draws] for draws in by_draws]
        run = Runner(
            self.model, method, self.max_new_tokens, self.batch_size, False, False, chosen,
            {draws: self._begin(sound) for draws, sound in by_draws.items()},
            self.fallback is not None and isinstance(method, Speculative), self.listener,
        )  # fmt: skip
        run.stats = self.stats
        for draws, completion in run.each(chosen, list(by_draws)):
            yield by_draws[draws], completion

    def _begin(self, sound: Sound) -> Begin:
        """How the next output of a sound begins."""
        a, told = self.model.model.architecture, self.words.prompt(sound.language, self.task, sound.timestamps)
        # What stands before the decoder's own start is no part of the length that the generation config allows.
        most = self.model.max_new_tokens(self.max_new_tokens, len(told))
        if not sound.before:
            return Begin(told, None, most)
        own = a.decoder_start_token_id
        room = room_before(self.model, told, self.max_new_tokens)
        before = sound.before[-min(room, a.max_positions // 2 - 1) :] if self.conditions else sound.before
        prompt = [*before, own, *told]
        return Begin(prompt, self.words.previous, min(most, a.max_positions - 1 - len(prompt)))

    def _started(self, sound: Sound) -> list[int]:
        """What stands before the next output, the start first."""
        begin = self._begin(sound)
        own = self.model.model.architecture.decoder_start_token_id
        return [own if begin.start is None else begin.start, *begin.prompt]

    def _log_probability(self, completion: Completion) -> float | None:
        """The mean of a window's tokens, or what the method has for it; None: nobody asks."""
        if self.fallback is None:
            return None
        if completion.hypotheses:
            return completion.hypotheses[0][0]
        return statistics.fmean(completion.log_probabilities)

    def _is_doubtful(self, sound: Sound, window: Tensor, heard: _Heard) -> bool:
        """Whether a window is to be heard again."""
        text, net = self._text(heard.tokens), self.fallback
        unlike = net.unsure(heard.log_probability) or (text is not None and net.repeats(text))
        return unlike and not self._is_silent(sound, window, heard)

    def _is_silent(self, sound: Sound, window: Tensor, heard: _Heard) -> bool:
        """Whether nothing is said in a window that was heard so."""
        net = self.fallback
        if net is None or net.no_speech is None:
            return False
        if net.log_probability is not None and not net.unsure(heard.log_probability):
            return False
        if sound.silent is None:
            started, before = time.perf_counter(), self._started(sound)
            told = len(self.words.prompt(sound.language, self.task, sound.timestamps))
            through = before[: len(before) - told]  # the decoder's own start is the last
            logits = logits_behind(self.model.model, window, through)[0, -1]
            sound.silent = float(logits.double().softmax(-1)[self.words.no_speech]) > net.no_speech
            self.stats.seconds += time.perf_counter() - started
        return sound.silent

    def _take(self, sound: Sound, heard: _Heard, silent: bool) -> None:
        """What was heard stands; in a silent window it is nothing."""
        began = sound.seek
        sound.windows.append(Window(began, self._started(sound), heard.tokens, silent))
        said = self._understood(sound, heard, silent)
        if self.conditions and not silent:
            sound.before = list(self.starting) if heard.temperature >= HOT else [*sound.before, *said]
        sound.silent = None
        if self.progress is not None:
            self.progress((min(sound.seek, sound.frames) - began) / PLACE * SECONDS)

    def _text(self, tokens: Sequence[int]) -> str | None:
        if self.model.tokenizer is None:
            return None
        spoken = [token for token in tokens if token < self.words.first_timestamp]
        return self.model.tokenizer.decode(spoken, skip_special_tokens=True)

    def _understood(self, sound: Sound, heard: _Heard, silent: bool) -> list[int]:
        """Add a window's segments; returns their tokens."""
        places = self.model.model.architecture.sound.places
        left = min(places, -(-(sound.frames - sound.seek) // PLACE))
        offset = sound.seek / PLACE * SECONDS
        written = [token for token in heard.tokens if token not in self.model.eos_token_ids]
        found, reached = [(0, left, written)], left
        if silent:
            found = []
        elif sound.timestamps:
            found, reached = segments(written, self.words.first_timestamp, left)
        times, known = None if silent else self._times(sound, heard, left, offset), 0
        for start, end, part in found:
            start, end = (round(offset + place * SECONDS, 2) for place in (start, end))
            words = None
            if times is not None:
                text = [token for token in part if token < self.listener.end]
                words = self._words(sound, text, times[known:])
                known += len(text)
            said = Segment(start, end, self._text(part), part, heard.log_probability, heard.temperature, words)
            sound.segments.append(said)
        # A window in which nothing was understood would be heard for ever.
        sound.seek += PLACE * (reached or left)
        return [token for _, _, part in found for token in part]

    def _times(self, sound: Sound, heard: _Heard, left: int, offset: float) -> list[float] | None:
        """When each token of a window's text began, in seconds, and behind them when the last ended."""
        if heard.scores is None:
            return None
        told = len(self.words.prompt(sound.language, self.task, True)) + 2  # with the start and that of no timestamps
        found = starts(heard.scores, left, told, self.listener.smoothed)
        return [round(offset + float(place) * SECONDS, 2) for place in found]

    def _words(self, sound: Sound, text: Sequence[int], times: Sequence[float]) -> list[Word]:
        """Of tokens that began at these times."""
        found, at, last = [], 0, len(times) - 1  # what was too long to be listened to has no time of its own
        for word, count in words_of(self.model.tokenizer, text, sound.language):
            found.append(Word(times[min(at, last)], times[min(at + count, last)], word))
            at += count
        return found


def temperature_of(method: Method) -> float:
    """Of a method that is `completed`; 0 where nothing is drawn."""
    sampling = getattr(method, "sampling", None)
    return 0.0 if sampling is None else 1.0 if sampling.temperature is None else sampling.temperature


def room_before(model: Seq2Seq, told: Sequence[int], max_new_tokens: int | None) -> int:
    """How many tokens there may be before the decoder's own start and what it is told, behind the token for that."""
    return model.model.architecture.max_positions - len(told) - 2 - (max_new_tokens or 1)
