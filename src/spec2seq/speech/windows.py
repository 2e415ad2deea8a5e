"""Windows of sounds, one after the other: each is decoded, and says where the next begins."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spec2seq.api import Method, Seq2Seq
from spec2seq.decoding.methods import Sample, Speculative
from spec2seq.decoding.scheduler import Completion
from spec2seq.decoding.score import logits_behind
from spec2seq.decoding.stats import Stats
from spec2seq.runner import Runner
from spec2seq.speech.fallback import HOT, Fallback
from spec2seq.speech.timestamps import segments
from spec2seq.speech.vocabulary import SECONDS, SpeechVocabulary

PLACE = 2  # frames of a spectrogram to a timestamp


@dataclass(frozen=True)
class Segment:
    """What was said from `start` to `end`, in seconds; `tokens` with the timestamps. With a fallback also the mean
    `log_probability` of the tokens of its window, in nats, and the `temperature` at which that was heard again."""

    start: float
    end: float
    text: str | None
    tokens: list[int]
    log_probability: float | None = None
    temperature: float | None = None


@dataclass
class Sound:
    """On its way: `features` `[bins, frames]`, of which `seek` are understood. `draws` is what the next window is drawn
    by, where it is: no other window has it. The next window goes on from the tokens `before`."""

    features: Tensor
    frames: int
    seconds: float
    timestamps: bool
    draws: int = 0
    seek: int = 0
    language: str | None = None
    before: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)


def window_of(model: Seq2Seq, sound: Sound) -> Tensor:
    """The next one, `[places, 2 * bins]`."""
    shape = model.model.architecture.sound
    cut = sound.features[:, sound.seek : sound.seek + PLACE * shape.places]
    cut = torch.nn.functional.pad(cut, (0, PLACE * shape.places - cut.shape[1]))
    return cut.T.reshape(shape.places, -1)


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

    def next_windows(self, sounds: list[Sound]) -> None:
        """One window of each sound, at as many temperatures as it takes."""
        windows = {sound.draws: window_of(self.model, sound) for sound in sounds}
        methods: list[tuple[float | None, Method]] = [(None, self.method)]
        if self.fallback is not None:
            methods += [(t, Sample(t, seed=self.fallback.seed + attempt))
                        for attempt, t in enumerate(self.fallback.temperatures, 1)]  # fmt: skip
        for attempt, (temperature, method) in enumerate(methods, 1):
            sounds = [
                sound for sound, completion in self._decoded(sounds, windows, method)
                if not self._stands(sound, windows[sound.draws], completion, temperature, attempt == len(methods))
            ]  # fmt: skip
            if not sounds:
                break

    def _decoded(
        self, sounds: list[Sound], windows: dict[int, Tensor], method: Method
    ) -> Iterator[tuple[Sound, Completion]]:
        scores = self.fallback is not None and isinstance(method, Speculative)
        by_draws = {sound.draws: sound for sound in sounds}
        begins = {draws: self._begin(sound) for draws, sound in by_draws.items()}
        chosen = [windows[draws] for draws in by_draws]
        run = Runner(
            self.model, method, self.max_new_tokens, self.batch_size, False, False, chosen,
            {draws: begin[1:] for draws, begin in begins.items()}, scores,
            {draws: begin[0] for draws, begin in begins.items()},
        )  # fmt: skip
        run.stats = self.stats
        for draws, completion in run.each(chosen, list(by_draws)):
            yield by_draws[draws], completion

    def _begin(self, sound: Sound) -> list[int]:
        """What the next output of a sound begins with, a decoder's start and all."""
        a = self.model.model.architecture
        told = [a.decoder_start_token_id, *self.words.prompt(sound.language, self.task, sound.timestamps)]
        if not sound.before:
            return told
        room = min(a.max_positions // 2 - 1, a.max_positions - len(told) - (self.max_new_tokens or 1))
        return [self.words.previous, *sound.before[-room:], *told] if room > 0 else told

    def _stands(
        self, sound: Sound, window: Tensor, completion: Completion, temperature: float | None, last: bool
    ) -> bool:
        """Take what was written of a window, or nothing if it is silent; False if it is to be heard again."""
        tokens = [token for token in completion.tokens if token not in self.model.eos_token_ids]
        log_probability, silent = None, False
        if self.fallback is not None:
            log_probability = _log_probability(completion)
            unsure = self.fallback.unsure(log_probability)
            silent = (unsure or self.fallback.log_probability is None) and self._is_silent(sound, window)
            if not silent and not last and (unsure or self.fallback.repeats(self._text(tokens) or "")):
                return False
        began = sound.seek
        said = self._understood(sound, tokens, silent, log_probability, temperature)
        if self.conditions:
            sound.before = list(self.starting) if (temperature or 0.0) > HOT else [*sound.before, *said]
        if self.progress is not None:
            self.progress((min(sound.seek, sound.frames) - began) / PLACE * SECONDS)
        return True

    def _is_silent(self, sound: Sound, window: Tensor) -> bool:
        if self.fallback.no_speech is None:
            return False
        begin, behind = self._begin(sound), self.words.prompt(sound.language, self.task, sound.timestamps)
        logits = logits_behind(self.model.model, window, begin[: len(begin) - len(behind)])[0, -1]
        return float(logits.double().softmax(-1)[self.words.no_speech]) > self.fallback.no_speech

    def _text(self, tokens: Sequence[int]) -> str | None:
        if self.model.tokenizer is None:
            return None
        spoken = [token for token in tokens if token < self.words.first_timestamp]
        return self.model.tokenizer.decode(spoken, skip_special_tokens=True)

    def _understood(
        self, sound: Sound, tokens: list[int], silent: bool, log_probability: float | None, temperature: float | None
    ) -> list[int]:
        """Add a window's segments; returns their tokens."""
        places = self.model.model.architecture.sound.places
        left = min(places, -(-(sound.frames - sound.seek) // PLACE))
        offset = sound.seek / PLACE * SECONDS
        found, reached = [(0, left, tokens)], left
        if silent:
            found = []
        elif sound.timestamps:
            found, reached = segments(tokens, self.words.first_timestamp, left)
        for start, end, part in found:
            start, end = (round(offset + place * SECONDS, 2) for place in (start, end))
            sound.segments.append(Segment(start, end, self._text(part), part, log_probability, temperature))
        # A window in which nothing was understood would be heard for ever.
        sound.seek += PLACE * (reached or left)
        return [token for _, _, part in found for token in part]


def _log_probability(completion: Completion) -> float:
    """The mean of a window's tokens, as the method has it."""
    if completion.hypotheses:
        return completion.hypotheses[0][0]
    return statistics.fmean(completion.log_probabilities)
