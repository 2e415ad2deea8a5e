"""Audio files to samples."""

import contextlib
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from spec2seq.checks import samples
from spec2seq.errors import Spec2SeqError, UsageError, first_line, missing_extra


def read_audio(sound: Any, where: str, rate: int) -> tuple[np.ndarray, str]:
    """Samples `[n]` of a file at `rate` samples a second, its channels mixed into one, or of an array as it is; and
    what to call the sound.

    Raises UsageError for what is neither, or a file that is not there, Spec2SeqError for one that cannot be read or a
    sound without samples; they name `where`, or the file.
    """
    if isinstance(sound, str | PathLike):
        where = str(sound)
        sound = _read_file(Path(sound), rate)
    return samples(sound, where), where


def length(path: Path) -> float:
    """Seconds of an audio file, as its header says. Raises as `read_audio` does."""
    with _opened(path) as file:
        return file.frames / file.samplerate


def _read_file(path: Path, rate: int) -> np.ndarray:
    with _opened(path) as file:
        mixed, own = file.read(dtype="float32", always_2d=True).mean(1), file.samplerate
    return mixed if own == rate else _libraries()[1].resample(mixed, own, rate)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file of soundfile's; whatever is broken in it, and is met by then, is one error."""
    soundfile, _ = _libraries()
    if not path.is_file():
        raise UsageError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        with soundfile.SoundFile(path) as file:
            yield file
    except Exception as error:  # of any kind: whatever a decoder makes of a broken file
        raise Spec2SeqError(f"{path}: no audio that can be read: {first_line(error)}") from None


def _libraries() -> tuple[Any, Any]:
    try:
        import soundfile
        import soxr
    except ImportError as error:
        raise missing_extra(str(error.name), "speech") from None
    return soundfile, soxr
