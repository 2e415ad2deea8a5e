"""Training data of a model that hears: what it wrote of windows of sounds, and what its encoder makes of them."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spec2seq.api import Method, Seq2Seq
from spec2seq.checks import check_ids
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.speech import audio
from spec2seq.speech.transcribe import read_sound, transcribe, with_timestamps
from spec2seq.speech.vocabulary import SpeechVocabulary
from spec2seq.speech.windows import window_at
from spec2seq.training.batches import Collator
from spec2seq.training.data import Pair
from spec2seq.training.recipe import DataConfig

TOLD = 3  # tokens behind the decoder's start: language, task, no timestamps
PLACES_TO_TOKEN = 16
REPORTED = 100  # windows, after which there is a line of progress


def check_told(model: Seq2Seq, data: DataConfig) -> None:
    """Raises UsageError for what does nothing with this model, or a language or a task that it does not know."""
    hears = model.model.architecture.sound is not None
    for name, unused in {"prefix": hears, "language": not hears, "task": not hears, "timestamps": not hears}.items():
        value = getattr(data, name)
        if unused and value != getattr(DataConfig, name):
            raise UsageError(f"{name} is {value!r}; it does nothing for a model that {'hears' if hears else 'reads'}")
    if hears:
        if model.extractor is None:
            raise UsageError("this model has no feature extractor, which makes spectrograms")
        words = SpeechVocabulary.of(model)
        words.prompt(words.language(data.language) or next(iter(words.languages), None), data.task, True)


def file_of(folder: Path, pair: Pair) -> Path:
    """The sound that a line of a corpus in `folder` names."""
    return folder / pair.source.strip()


def lengths(model: Seq2Seq, folder: Path, pairs: Sequence[Pair], data: DataConfig) -> list[float]:
    """Seconds of each sound, by what stands at its beginning. Raises as `read_audio` does for the first that is none,
    Spec2SeqError for one that is too long for a decoding without timestamps."""
    found, most = [], model.extractor.n_samples / model.extractor.sampling_rate
    for pair in pairs:
        file = file_of(folder, pair)
        seconds = audio.length(file)
        if not seconds:
            raise Spec2SeqError(f"{file}: there are no samples")
        if seconds > most and data.timestamps is False:
            raise Spec2SeqError(f"{file} is {seconds:.1f} seconds long; without timestamps the model hears {most:.0f}")
        found.append(seconds)
    return found


def transcribed(
    model: Seq2Seq, folder: Path, pairs: Sequence[Pair], data: DataConfig, method: Method, batch_size: int,
    max_new_tokens: int | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A record for each window of each sound, whose file is named from `folder`."""
    files = [str(file_of(folder, pair).resolve()) for pair in pairs]
    found = transcribe(
        model, files, method, language=data.language, task=data.task, timestamps=data.timestamps,
        batch_size=batch_size, max_new_tokens=max_new_tokens,
    )  # fmt: skip
    return [
        {"source": file, "frame": window.frame, "prompt": window.prompt, "tokens": window.tokens,
         "target": model.tokenizer.decode(window.tokens, skip_special_tokens=True), "reference": pair.target}
        for pair, file, transcript in zip(pairs, files, found.transcripts, strict=True)
        for window in transcript.windows
    ]  # fmt: skip


def spectrograms(model: Seq2Seq, pairs: Sequence[Pair]) -> Iterator[Tensor]:
    """What is heard of each, `[places, 2 * bins]`. A file is read once for pairs that follow each other. Raises
    Spec2SeqError for a window behind the end of its sound."""
    file, sound = None, None
    for pair in pairs:
        if pair.source != file:
            file, sound = pair.source, read_sound(model, pair.source, pair.source)
        if pair.frame >= sound.frames:
            raise Spec2SeqError(f"{file}: a window begins at frame {pair.frame}; the sound has {sound.frames}")
        yield window_at(model, sound, pair.frame)


def timed_apart(model: Seq2Seq, pairs: Sequence[Pair]) -> list[tuple[Seq2Seq, list[Pair]]]:
    """Windows with timestamps, and the model under their rules; and those without."""
    words = SpeechVocabulary.of(model)
    plain = [pair for pair in pairs if pair.prompt[-1] == words.no_timestamps]
    timed = [pair for pair in pairs if pair.prompt[-1] != words.no_timestamps]
    return [(asked, part) for asked, part in ((model, plain), (with_timestamps(model, words), timed)) if part]


class HeardRows(torch.utils.data.Dataset):
    """Windows with the encoder's states `[windows, places, width]`, float16. Item i is (states, prompt and output, how
    many of these are the prompt's without the decoder's start)."""

    def __init__(self, states: np.ndarray, pairs: Sequence[Pair]):
        self.states = states
        self.prompts = [pair.prompt[1:] for pair in pairs]
        self.outputs = [pair.tokens for pair in pairs]
        self.target = np.fromiter((token for output in self.outputs for token in output), dtype=np.int32)
        self.target_lengths = np.array([len(p) + len(o) for p, o in zip(self.prompts, self.outputs, strict=True)])
        # Keys and values of a window take as long as some tokens, however few were written of it.
        self.source_lengths = np.full_like(self.target_lengths, states.shape[1] // PLACES_TO_TOKEN)

    def __len__(self) -> int:
        return len(self.outputs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
        prompt = self.prompts[index]
        return self.states[index], np.array([*prompt, *self.outputs[index]], dtype=np.int64), len(prompt)


class HeardCollator(Collator):
    """Items of `HeardRows` to a batch: encoded `[rows, places, width]`, decoder_input_ids, labels (-100 where padded,
    and for what the prompt says)."""

    def __call__(self, rows: Sequence[tuple[np.ndarray, np.ndarray, int]]) -> dict[str, Tensor]:
        batch = super().__call__([(target[:1], target) for _, target, _ in rows])
        given = torch.tensor([given for _, _, given in rows])
        labels = batch["labels"]
        labels[torch.arange(labels.shape[1]) < given[:, None]] = -100
        encoded = torch.from_numpy(np.stack([states for states, _, _ in rows]))
        return {"encoded": encoded, "decoder_input_ids": batch["decoder_input_ids"], "labels": labels}


def learnable(verifier: Seq2Seq, pairs: Sequence[Pair], data: DataConfig, where: Path) -> list[Pair]:
    """Those in which something was said, and of which the decoder reads at most `data.max_tokens`.

    Raises UsageError if there are none, or for a record that `distill` did not write with this model.
    """
    check(verifier, pairs, f"{where}: ")
    # The last token is never read.
    found = [
        pair for pair in pairs if pair.target.strip() and len(pair.prompt) + len(pair.tokens) - 1 <= data.max_tokens
    ]
    if not found:
        raise UsageError(f"{where}: none of its windows passes the recipe's data filters")
    return found[: data.max_lines]


def encoded(verifier: Seq2Seq, pairs: Sequence[Pair], folder: Path, report: Callable[[str], None]) -> np.ndarray:
    """The encoder's states of windows, `[windows, places, width]`, float16, from a file in `folder`: they are encoded
    once, and a call that was stopped goes on behind what is there."""
    a = verifier.model.architecture
    shape, size = (len(pairs), a.sound.places, a.width), 2 * a.sound.places * a.width
    heard = [(pair.source, Path(pair.source).stat().st_size, pair.frame) for pair in pairs]
    key = json.dumps([verifier.fingerprint(), str(verifier.model.dtype), heard])
    file = folder / f"encoded-{hashlib.sha256(key.encode()).hexdigest()[:16]}.f16"
    folder.mkdir(parents=True, exist_ok=True)
    done = file.stat().st_size // size if file.is_file() else 0
    if done < len(pairs):
        with open(file, "ab") as out:
            os.truncate(file, done * size)
            for number, states in enumerate(_encode(verifier, spectrograms(verifier, pairs[done:])), done + 1):
                out.write(states.tobytes())
                if number % REPORTED == 0:
                    report(f"encoded {number} of {len(pairs)} windows")
    return np.memmap(file, np.float16, "r", shape=shape)


@torch.no_grad()
def _encode(verifier: Seq2Seq, heard: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """The encoder's states of each spectrogram, `[places, width]`, float16."""
    model = verifier.model
    for features in heard:
        places = torch.full((1,), len(features), device=model.device)
        yield model.encode(features[None].to(model.device), places).states[0].to("cpu", torch.float16).numpy()


def check(verifier: Seq2Seq, pairs: Sequence[Pair], where: str = "") -> None:
    """Raises UsageError for a record that `distill` did not write with this model, or whose sound is gone."""
    a = verifier.model.architecture
    for number, pair in enumerate(pairs, 1):
        record = f"{where}record {number}"
        if pair.frame is None or not pair.tokens or not pair.prompt:
            needed = "what distill wrote with a model that hears"
            raise UsageError(f"{record} lacks frame, prompt or tokens; needed: {needed}")
        check_ids([*pair.prompt, *pair.tokens], record, a.vocabulary)
        if pair.prompt[0] != a.decoder_start_token_id:
            raise UsageError(f"{record}: its prompt begins with {pair.prompt[0]}, not with the decoder's start")
        if not Path(pair.source).is_file():
            raise UsageError(f"{record}: {pair.source}: no such file")
