"""Distillation data: the verifier's own output for every source line (sequence-level, Kim and Rush 2016).

What learns from it, a little model, a block drafter or the verifier itself, learns what the verifier will write.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spec2seq import Beam, Greedy, Seq2Seq
from spec2seq.api import Method
from spec2seq.checks import LONGEST_SOURCE
from spec2seq.errors import UsageError
from spec2seq.files import replacing
from spec2seq.models import languages
from spec2seq.models.fingerprint import fingerprint
from spec2seq.training.data import Pair, made_by, read_pairs
from spec2seq.training.prepare import created
from spec2seq.training.processes import processes
from spec2seq.training.recipe import DataConfig, Recipe
from spec2seq.training.sounds import check_told, lengths, transcribed
from spec2seq.training.validation import sample

ROWS, LINES = 64, 1024  # in flight and in a chunk
WINDOWS, SOUNDS = 8, 32  # of a model that hears: what it has read of a window fills megabytes
SECONDS = 7200.0  # of sound in a chunk


@dataclass(frozen=True)
class Distilled:
    """What one call wrote: lines and tokens of this process, its seconds; and the file, None while it is not whole."""

    lines: int
    tokens: int
    seconds: float
    file: Path | None


def distill(
    model: Seq2Seq,
    corpus: Path,
    out: Path,
    data: DataConfig,
    method: Method | None = None,
    *,
    batch_size: int | None = None,
    lines: int | None = None,
    chunk_lines: int | None = None,
    max_new_tokens: int | None = None,
    max_seconds: float | None = None,
    report: Callable[[str], None] | None = None,
) -> Distilled:
    """Write the model's output for the sources of `corpus` to `out`: JSONL with source, target, tokens, reference.

    Chunks of lines are files beside `out` until all are there: a call that was stopped goes on with those that are
    missing, and under `accelerate launch` each process takes every N-th one. `tokens` are the target's ids, end
    token included, because a text may be segmented otherwise than the model wrote it.

    Args:
        corpus: TSV, JSONL or lines of text (.txt), optionally .gz.
        data: which columns, and which sources by words, tokens (at most the model's positions) and origin; its other
            filters are about references.
        method: Greedy() by default; Beam for beam search.
        batch_size: rows in flight; 64 is the fastest on 2 cores with the bundled model.
        lines: so many, evenly spread over the usable lines; None takes all.
        max_new_tokens: of an output; None takes `data.max_tokens`. At most the model's positions.
        chunk_lines: lines of a chunk, which is sorted by length and decoded together; 1024, or 32 sounds of at most two
            hours.
        max_seconds: ends the call after the chunk in which they are over; calling again goes on.
        report: takes a line of progress after each chunk.

    Raises UsageError for a corpus without usable lines, chunks of another run at `out`, or settings that do nothing
    with this model; as `read_audio` for what is no sound.
    """
    check_told(model, data)
    hears = model.model.architecture.sound is not None
    chunk_lines = chunk_lines or (SOUNDS if hears else LINES)
    batch_size = batch_size or (WINDOWS if hears else ROWS)
    state = processes()
    method = method or Greedy()
    parts = out.parent / f"{out.name}.parts"
    drafter = getattr(getattr(method, "drafter", None), "model", None)
    weights = None if drafter is None else fingerprint(drafter)
    settings = asdict(data), repr(method), weights, lines, chunk_lines, max_new_tokens
    pairs = sample(list(_usable(read_pairs(corpus, data), data, hears)), lines)
    if not pairs:
        raise UsageError(f"{corpus}: none of its lines passes the filters")
    seconds = lengths(model, corpus.parent, pairs, data) if hears else [0.0] * len(pairs)
    with state.main_process_first():
        _claim(parts, _description(model, corpus, settings, seconds))
    chunks = _chunks(pairs, seconds, chunk_lines)
    missing = [i for i in range(len(chunks)) if not (parts / _name(i)).is_file()]
    state.wait_for_everyone()  # all list the same, before any writes
    mine = missing[state.process_index :: state.num_processes]
    started, written, tokens, left_out = time.monotonic(), 0, 0, 0
    for done, index in enumerate(mine, 1):
        how = method, batch_size, max_new_tokens
        if hears:
            records = transcribed(model, corpus.parent, chunks[index], data, *how)
        else:
            records = _generated(model, chunks[index], data, *how)
            left_out += len(chunks[index]) - len(records)
        _write_chunk(parts / _name(index), records)
        written, tokens = written + len(records), tokens + sum(len(record["tokens"]) for record in records)
        if report is not None:
            took = time.monotonic() - started
            left = took / done * (len(mine) - done) / 60
            report(f"chunk {done} of {len(mine)}: {tokens / took:.0f} tokens/s, {left:.1f} minutes left")
        if max_seconds is not None and time.monotonic() - started >= max_seconds:
            break
    if left_out and report is not None:
        report(f"{left_out} sources were left out: they have more than {_most(model, data)} tokens")
    state.wait_for_everyone()
    whole = all((parts / _name(i)).is_file() for i in range(len(chunks)))
    state.wait_for_everyone()
    if whole and state.is_main_process:
        _join(parts, len(chunks), out)
    state.wait_for_everyone()
    return Distilled(written, tokens, time.monotonic() - started, out if whole else None)


def distilled_files(
    recipe: Recipe, run: Path, corpora: Mapping[str, Path], max_seconds: float | None,
    report: Callable[[str], None] | None,
) -> bool:  # fmt: skip
    """Make the files of `recipe.data` that `corpora` has a corpus for (train, dev, test), as `recipe.distillation`
    says; False if the time was over before all were whole. The prefix is the model's, and in no record."""
    asked, started = recipe.distillation, time.monotonic()
    (run / "distilled").mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    direction = {} if recipe.drafter is None else recipe.drafter.direction
    name = made_by(asked.model, run)
    model = Seq2Seq.from_pretrained(name, asked.dtype, device, prefix=recipe.data.prefix, **direction)
    method = Greedy() if asked.num_beams == 1 else Beam(num_beams=asked.num_beams)
    train = replace(recipe.data, prefix="", target_tokens=None)
    everything = replace(train, min_words=1, max_words=10_000, exclude_origins=())
    for key, corpus in corpora.items():
        data, lines = (train, asked.lines) if key == "train" else (everything, None)
        done = distill(
            model, corpus, distilled_file(recipe, run, key), data, method, lines=lines, batch_size=asked.batch_size,
            max_seconds=None if max_seconds is None else max_seconds - (time.monotonic() - started), report=report,
        )  # fmt: skip
        if done.file is None:
            return False
    return True


def distilled_file(recipe: Recipe, run: Path, key: str) -> Path:
    """What `recipe.distillation` makes of `data.train`, `data.dev` or `data.test`."""
    return run / "distilled" / Path(getattr(recipe.data, key)).name


def _chunks(pairs: Sequence[Pair], seconds: Sequence[float], most: int) -> list[list[Pair]]:
    """So many lines each, or hours of sound: all of a chunk are in memory."""
    chunks, total = [[]], 0.0
    for pair, length in zip(pairs, seconds, strict=True):
        if len(chunks[-1]) == most or (chunks[-1] and total + length > SECONDS):
            chunks.append([])
            total = 0.0
        chunks[-1].append(pair)
        total += length
    return chunks


def _description(model: Seq2Seq, corpus: Path, settings: tuple, seconds: Sequence[float]) -> str:
    """What must be the same for two calls to write the same lines."""
    task = model.src_lang, model.tgt_lang, model.prefix, model.max_len_a, model.max_len_b
    values = [model.fingerprint(), corpus.name, corpus.stat().st_size, *settings, *task, *seconds]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _claim(parts: Path, description: str) -> None:
    stamp = parts / "run"
    if not stamp.is_file():
        parts.mkdir(parents=True, exist_ok=True)
        stamp.write_text(description, encoding="utf-8")
    elif stamp.read_text(encoding="utf-8") != description:
        raise UsageError(f"{parts}: holds chunks of another model, corpus or method; remove it or choose another name")


def _usable(pairs: Iterator[Pair], data: DataConfig, sounds: bool) -> Iterator[Pair]:
    """Sources of the wanted length and origin, each once, none empty; whether a reference fits them does not matter
    here. The words of a file's name are not counted."""
    seen = set()
    for pair in pairs:
        words = len(pair.source.removeprefix(data.prefix).split())
        fits = sounds or max(1, data.min_words) <= words <= data.max_words
        if fits and pair.origin not in data.exclude_origins and pair.source not in seen:
            seen.add(pair.source)
            yield pair


def _name(index: int) -> str:
    return f"{index:06d}.jsonl"


def _generated(
    model: Seq2Seq, pairs: Sequence[Pair], data: DataConfig, method: Method, batch_size: int, cap: int | None
) -> list[dict[str, Any]]:
    """A record for each source that has no more tokens than `data` and the model allow."""
    ids, a, most = [model.encode_text(pair.source) for pair in pairs], model.model.architecture, _most(model, data)
    if data.truncate:
        ids = [languages.cut(row, most, a.eos_token_id) for row in ids]
    kept = [i for i, row in enumerate(ids) if len(row) <= most]
    cap = min(cap or data.max_tokens, a.max_positions or cap or data.max_tokens)
    rows = model.generate([ids[i] for i in kept], method, batch_size=batch_size, max_new_tokens=cap).rows
    return [
        {"source": pairs[i].source, "target": row.text, "tokens": row.tokens, "reference": pairs[i].target}
        for i, row in zip(kept, rows, strict=True)
    ]


def _most(model: Seq2Seq, data: DataConfig) -> int:
    """Tokens of a source."""
    return min(data.max_tokens, model.model.architecture.max_source_positions or LONGEST_SOURCE)


def _write_chunk(path: Path, records: Sequence[dict[str, Any]]) -> None:
    partial = path.with_suffix(f".{os.getpid()}")
    with open(partial, "w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    os.replace(partial, path)


def _join(parts: Path, count: int, out: Path) -> None:
    """One file of all chunks in order, gzipped if its name ends in .gz; only then are the chunks removed."""
    with replacing(out) as partial, created(partial, out.suffix == ".gz") as whole:
        for index in range(count):
            with open(parts / _name(index), "rb") as chunk:
                shutil.copyfileobj(chunk, whole)
    shutil.rmtree(parts)
