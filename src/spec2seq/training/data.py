"""Pairs of text from TSV or JSONL files (.gz too), and the filters that choose which of them train."""

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spec2seq import io
from spec2seq.errors import UsageError
from spec2seq.training.hub import MARK, download, local_name
from spec2seq.training.recipe import DataConfig

TSV_NAMES = {"source": "0", "target": "1"}  # one recipe may read what `distill` wrote and a TSV


@dataclass(frozen=True)
class Pair:
    """One source text, its target text, the name of where they are from (empty if not known), and the target's
    token ids where the data has them. Of a window of a sound the source is a file and `frame` where it begins; the
    output stands behind the `prompt`, the decoder's start first."""

    source: str
    target: str
    origin: str = ""
    tokens: tuple[int, ...] | None = None
    frame: int | None = None
    prompt: tuple[int, ...] = ()


def resolve(name: str, data_dir: str | Path | None = None) -> Path:
    """The file a recipe means by `name`: under `data_dir` or $SPEC2SEQ_DATA as written or its base name, else as
    written. What is named `hub:…` is downloaded there (without either, here) if its copy is not there yet.

    Raises UsageError with every place that was looked at.
    """
    folder = data_dir or os.environ.get("SPEC2SEQ_DATA")
    if name.startswith(MARK):
        copy = Path(folder or ".") / local_name(name)
        packed = copy.with_name(f"{copy.name}.gz")
        if not copy.is_file() and not packed.is_file():
            download(name, copy)
        return copy if copy.is_file() else packed
    path = Path(name)
    folders = [Path(folder) / path, Path(folder) / path.name] if folder and not path.is_absolute() else []
    places = dict.fromkeys([*folders, path])
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(map(str, places))
    raise UsageError(f"data file {name!r} not found; looked at {looked}; set --data DIR or SPEC2SEQ_DATA")


def made_by(name: str, run: Path) -> str:
    """What another run made, a model or a file, that a recipe means by `name`: as written, or beside this run, and then
    from the root, so that `resolve` looks nowhere else."""
    beside = run.parent.absolute() / name
    return str(beside) if not Path(name).exists() and beside.exists() else name


def read_pairs(path: Path, data: DataConfig) -> Iterator[Pair]:
    """Yield every pair of a file, unfiltered. Raises UsageError with file and line for one that cannot be read,
    Spec2SeqError as `read_lines`."""
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    parsers = {"tsv": _parse_tsv, "jsonl": _parse_jsonl, "txt": lambda line, data, where: Pair(line, "")}
    if kind not in parsers:
        raise UsageError(f"{path}: unknown kind of data; allowed: .tsv, .jsonl, .txt (sources alone), each also .gz")
    parse = parsers[kind]
    for line in io.read_lines(path):
        if line.text:
            pair = parse(line.text, data, f"{path}:{line.number}")
            yield dataclasses.replace(pair, source=data.prefix + pair.source) if data.prefix else pair


def _parse_tsv(line: str, data: DataConfig, where: str) -> Pair:
    columns, chosen = line.split("\t"), [TSV_NAMES.get(name, name) for name in (data.source, data.target)]
    if not all(map(str.isdecimal, chosen)):
        raise UsageError(
            f"data.source is {data.source!r}, data.target {data.target!r}; allowed for TSV: column numbers from 0, "
            "or source and target for the first two"
        )
    try:
        source, target = (columns[int(number)] for number in chosen)
    except IndexError:
        raise UsageError(f"{where}: {len(columns)} columns; needed: {data.source} and {data.target}") from None
    origin = data.origin if data.origin is not None and data.origin.isdecimal() else None
    if data.exclude_origins and origin is None:
        raise UsageError(f"data.origin is {data.origin!r}; allowed for TSV with exclude_origins: a column number")
    return Pair(source, target, columns[int(origin)] if origin and int(origin) < len(columns) else "")


def _parse_jsonl(line: str, data: DataConfig, where: str) -> Pair:
    try:
        record = json.loads(line)
        source, target = (_field(record, name) for name in (data.source, data.target))
        tokens = None if data.target_tokens is None else record[data.target_tokens]
    except (ValueError, TypeError, RecursionError):
        raise UsageError(f"{where}: not a JSON object, or none where a dot leads into one") from None
    except KeyError as error:
        raise UsageError(
            f"{where}: no field {error}; data.source is {data.source!r}, data.target is {data.target!r}"
        ) from None
    for name, value in ((data.source, source), (data.target, target)):
        if not isinstance(value, str):
            raise UsageError(f"{where}: field {name!r} is {json.dumps(value)[:40]}; allowed: a text")
    if data.target_tokens is not None and not _are_tokens(tokens):
        shown = json.dumps(tokens)[:40]
        raise UsageError(f"{where}: field {data.target_tokens!r} is {shown}; allowed: a list of token ids")
    # Of a window of a sound; elsewhere fields of these names are something else.
    frame, prompt = record.get("frame"), record.get("prompt")
    return Pair(source, target, str(record.get(data.origin or "", "")), None if tokens is None else tuple(tokens),
                frame if isinstance(frame, int) else None, tuple(prompt) if _are_tokens(prompt) else ())  # fmt: skip


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(token, int) for token in value)


def _field(record: dict[str, Any], name: str) -> Any:
    """The value of a field; a dot leads into an object, unless a field is named so."""
    if name in record or "." not in name:
        return record[name]
    outer, _, inner = name.partition(".")
    return _field(record[outer], inner)


def filter_pairs(pairs: Iterator[Pair], data: DataConfig) -> Iterator[Pair]:
    """The pairs that the recipe wants, in order: word counts, ratio, origins, duplicates (same source and target)."""
    excluded, seen, kept = set(data.exclude_origins), set(), 0
    for pair in pairs:
        if pair.origin in excluded or misfit(pair, data):
            continue
        if data.dedupe:
            key = hash((pair.source, pair.target))
            if key in seen:
                continue
            seen.add(key)
        yield pair
        kept += 1
        if kept == data.max_lines:
            return


def misfit(pair: Pair, data: DataConfig) -> str | None:
    """Why the recipe does not want a pair: `empty`, `words` (of the source) or `ratio` (of characters), its prefix not
    counted; else None."""
    source = pair.source.removeprefix(data.prefix)
    words = len(source.split())
    if not words or not pair.target.strip():
        return "empty"
    if not data.min_words <= words <= data.max_words:
        return "words"
    # Characters, not words: German compounds make word counts a poor measure of a bad alignment.
    longer, shorter = sorted((len(source), len(pair.target)), reverse=True)
    return "ratio" if longer > data.max_ratio * shorter else None
