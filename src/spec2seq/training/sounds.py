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
from spec2seq.errors import UsageError
from spec2seq.speech import audio
from spec2seq.speech.transcribe import read_sound, transcribe, with_timestamps
from spec2seq.speech.vocabulary import SpeechVocabulary
from spec2seq.speech.windows import window_at
from spec2seq.training.batches import Collator
from spec2seq.training.data import Pair
from spec2seq.training.recipe import DataConfig

TOLD = 3  # tokens behind the decoder's start: language, task, no timestamps
PLACES_TO_TOKEN = 16
AT_ONCE = 16  # windows that are encoded before they are written down


def check_told(model: Seq2Seq, data: DataConfig) -> None:
    """Raises UsageError for what does nothing with this model, or a language or a task that it does not know."""
    hears = model.model.architecture.sound is not None
    for name, unused in {"prefix": hears, "language": not hears, "task": not hears, "timestamps": not hears}.items():
        value = getattr(data, name)
        if unused and value != getattr(DataConfig, name):
            raise UsageError(f"{name} is {value!r}; it does nothing for a model that {'hears' if hears else 'reads'}")
    if hears:
        words = SpeechVocabulary.of(model)
        words.prompt(words.language(data.language) or next(iter(words.languages), None), data.task, True)


def check_files(folder: Path, pairs: Sequence[Pair]) -> None:
    """Raises as `read_audio` does for the first file that is no sound, by what stands at its beginning."""
    for pair in pairs:
        audio.length(folder / pair.source)


def transcribed(
    model: Seq2Seq, folder: Path, pairs: Sequence[Pair], data: DataConfig, method: Method, batch_size: int,
    max_new_tokens: int | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A record for each window of each sound, whose file is named from `folder`."""
    files = [str((folder / pair.source).resolve()) for pair in pairs]
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
    """What is heard of each, `[places, 2 * bins]`. A file is read once for pairs that follow each other."""
    file, sound = None, None
    for pair in pairs:
        if pair.source != file:
            file, sound = pair.source, read_sound(model, pair.source, pair.source)
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


def heard_rows(
    verifier: Seq2Seq, pairs: Sequence[Pair], max_tokens: int, where: Path, folder: Path,
    report: Callable[[str], None],
) -> HeardRows:  # fmt: skip
    """The windows of `where` in which something was said, encoded once: what was encoded lies in `folder`, and a call
    that was stopped goes on behind it.

    Raises UsageError for records without a frame or a prompt, or if there are none of which the decoder reads at most
    `max_tokens`.
    """
    for number, pair in enumerate(pairs, 1):
        check(verifier, pair, f"{where}: record {number}")
    # The last token is never read.
    kept = [pair for pair in pairs if pair.target.strip() and len(pair.prompt) + len(pair.tokens) - 1 <= max_tokens]
    if not kept:
        raise UsageError(f"{where}: none of its windows passes the recipe's data filters")
    a = verifier.model.architecture
    shape = len(kept), a.sound.places, a.width
    key = json.dumps([verifier.fingerprint(), str(verifier.model.dtype), [(pair.source, pair.frame) for pair in kept]])
    file = folder / f"encoded-{hashlib.sha256(key.encode()).hexdigest()[:16]}.f16"
    folder.mkdir(parents=True, exist_ok=True)
    size = 2 * a.sound.places * a.width
    done = file.stat().st_size // size if file.is_file() else 0
    with open(file, "ab") as out:
        os.truncate(file, done * size)
        for start in range(done, len(kept), AT_ONCE):
            part = kept[start : start + AT_ONCE]
            out.write(encoded(verifier, spectrograms(verifier, part)).tobytes())
            if start // AT_ONCE % 10 == 9:
                report(f"encoded {start + len(part)} of {len(kept)} windows")
    return HeardRows(np.memmap(file, np.float16, "r", shape=shape), kept)


@torch.no_grad()
def encoded(verifier: Seq2Seq, heard: Iterable[Tensor]) -> np.ndarray:
    """The encoder's states of spectrograms, `[rows, places, width]`, float16."""
    model, made = verifier.model, []
    for features in heard:
        lengths = torch.full((1,), len(features), device=model.device)
        made.append(model.encode(features[None].to(model.device), lengths).states.to("cpu", torch.float16).numpy())
    return np.concatenate(made)


def check(verifier: Seq2Seq, pair: Pair, where: str) -> None:
    """Raises UsageError for a record that `distill` did not write with this model."""
    if pair.frame is None or pair.tokens is None or not pair.prompt:
        raise UsageError(f"{where} lacks frame, prompt or tokens; needed: what distill wrote with a model that hears")
    if pair.prompt[0] != verifier.model.architecture.decoder_start_token_id:
        raise UsageError(f"{where}: its prompt begins with {pair.prompt[0]}, not with the decoder's start")
