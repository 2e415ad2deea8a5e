"""The subcommand that hears: transcribe."""

import contextlib
import functools
import sys
from pathlib import Path
from typing import Annotated

import typer

from spec2seq import io
from spec2seq.cli.flags import (
    LanguageFlag,
    StatsFlag,
    TaskFlag,
    TimestampsFlag,
    load_all,
    print_stats,
    with_options,
)
from spec2seq.config import check_choice
from spec2seq.errors import UsageError
from spec2seq.evaluation.progress import progress
from spec2seq.files import write_text
from spec2seq.options import OPTIONS, MethodOptions, RunOptions
from spec2seq.speech.subtitles import ENDINGS, TIMED, written

GROUP = 4  # batches of sounds that are written together
OF_TEXTS = ("src_lang", "tgt_lang", "prefix", "max_len_a", "max_len_b", "truncate", "n_best")


@functools.partial(with_options, without=OF_TEXTS)
def transcribe(
    run: RunOptions, method: MethodOptions,
    sounds: Annotated[list[Path], typer.Argument(metavar="FILE...", help="audio, such as WAV, FLAC, Ogg or MP3")],
    language: LanguageFlag = None,
    task: TaskFlag = None,
    timestamps: TimestampsFlag = None,
    fallback: Annotated[
        bool, typer.Option("--fallback", help="hear a window again at higher temperatures where its text repeats "
                           "itself or is unlikely, and leave silent ones out (the thresholds of Whisper's paper)")
    ] = False,
    condition_on_previous: Annotated[
        bool, typer.Option("--condition-on-previous", help="each window goes on from the text of those before it")
    ] = False,
    initial_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="what outputs go on from: names and words to be expected")
    ] = None,
    word_timestamps: Annotated[
        bool, typer.Option("--word-timestamps", help="json also says when each word was said")
    ] = False,
    format: Annotated[
        str, typer.Option(metavar="|".join(ENDINGS), help="text and json are a line a sound, srt and vtt are timed")
    ] = "text",
    out: Annotated[
        Path | None, typer.Option("--out", help="folder for a file a sound, named as the sound (default: stdout)")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="leave sounds out whose files are there")] = False,
    stats: StatsFlag = False,
) -> None:  # fmt: skip
    """Write down what is said.

    Sounds of any length, in order. They are written in groups of 4 times --batch-size: what is written stays where the
    command is stopped, and with --resume the same command goes on.
    """
    timestamps = _check(sounds, timestamps, word_timestamps, format, out, resume)
    targets = [None] * len(sounds) if out is None else _targets(sounds, out, ENDINGS[format], resume)
    todo = [
        one for one in zip(range(len(sounds)), sounds, targets, strict=True) if one[2] is None or not one[2].exists()
    ]
    if not todo:
        return
    from spec2seq.decoding.stats import Stats
    from spec2seq.speech import audio
    from spec2seq.speech.fallback import Fallback
    from spec2seq.speech.transcribe import transcribe as hear

    seconds = sum(audio.length(sound) for _, sound, _ in todo)  # before those that loading takes
    model, decoding = load_all(run, method)
    settings = run.given("batch_size", "max_new_tokens")
    size = GROUP * settings.get("batch_size", OPTIONS["batch_size"].default)
    counts = Stats()
    hidden = out is None and sys.stdout.isatty()  # a bar would run through the lines
    bar = contextlib.nullcontext() if hidden else progress("seconds", round(seconds))
    with io.writer(None) as write, bar as advance:
        for group in (todo[start : start + size] for start in range(0, len(todo), size)):
            heard = hear(
                model, [sound for _, sound, _ in group], decoding, language=language, task=task,
                timestamps=timestamps, progress=advance, stats=counts, numbers=[number for number, _, _ in group],
                fallback=Fallback() if fallback else None, condition_on_previous=condition_on_previous,
                initial_prompt=initial_prompt, word_timestamps=word_timestamps, **settings,
            )  # fmt: skip
            for (_, sound, target), transcript in zip(group, heard.transcripts, strict=True):
                made = written(transcript, format, str(sound))
                write(made) if target is None else write_text(target, f"{made}\n")
    if stats:
        print_stats(counts)


def _check(
    sounds: list[Path], timestamps: bool | None, words: bool, form: str, out: Path | None, resume: bool
) -> bool | None:
    """Whether there are to be timestamps; None leaves it to the library. Raises UsageError for flags that do not go
    together."""
    check_choice("--format", form, ENDINGS)
    if words and form != "json":
        raise UsageError(f"--word-timestamps does nothing for --format {form}; allowed: json")
    if resume and out is None:
        raise UsageError("--resume does nothing without --out")
    if form not in TIMED:
        return timestamps
    if timestamps is False:
        raise UsageError(f"--format {form} needs timestamps; leave --no-timestamps out")
    if out is None and len(sounds) > 1:
        raise UsageError(f"--format {form} of several sounds needs a folder; give --out FOLDER")
    return True


def _targets(sounds: list[Path], out: Path, ending: str, resume: bool) -> list[Path]:
    """The file for every sound."""
    found: dict[Path, Path] = {}
    for sound in sounds:
        target = out / f"{sound.stem}.{ending}"
        if target in found:
            raise UsageError(f"{found[target]} and {sound} would both be written to {target}")
        if target.exists() and not resume:
            raise UsageError(f"{target} exists; --resume leaves its sound out")
        found[target] = sound
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written: {error.strerror}") from None
    return list(found)
