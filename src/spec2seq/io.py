"""Lines and JSONL: read with line numbers, written one by one or as a whole file."""

import contextlib
import gzip
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from spec2seq.errors import Spec2SeqError, UsageError

if TYPE_CHECKING:  # imports torch
    from spec2seq.generation import Row

RESULTS = ("output", "tokens", "stats", "trace", "hypotheses")


@dataclass(frozen=True)
class Line:
    """One source: its line number from 1, its text, and the JSON object it came in, if it came in one."""

    number: int
    text: str
    fields: dict[str, Any] | None = None


def read_lines(path: Path | None) -> Iterator[Line]:
    """The lines of a UTF-8 file (.gz too), or of stdin; a line ends at LF or CRLF and nowhere else.

    Raises UsageError for a file that cannot be opened, Spec2SeqError naming line and byte for a wrong encoding.
    """
    with _opened(path) as stream:
        for number, raw in enumerate(stream, 1):
            raw = raw.removesuffix(b"\n").removesuffix(b"\r")
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")  # the byte order mark is no text
            try:
                text = raw.decode()
            except UnicodeDecodeError as error:
                raise Spec2SeqError(
                    f"{name_of(path)}: line {number}, byte {error.start + 1}: 0x{raw[error.start]:02X} is not UTF-8; "
                    "allowed: text in UTF-8 (iconv converts)"
                ) from None
            yield Line(number, text if text.strip() else "")


def read_objects(path: Path | None, field: str) -> Iterator[Line]:
    """The sources in a JSONL file, or in stdin: `read_fields` of objects that have room for the results.

    Raises Spec2SeqError naming the line for anything else.
    """
    for line in read_fields(path, field):
        taken = [name for name in RESULTS if name in line.fields]
        if taken:
            where = f"{name_of(path)}: line {line.number}"
            raise Spec2SeqError(f"{where}: field {taken[0]!r} is there already and the results would overwrite it")
        yield line


def read_fields(path: Path | None, field: str) -> Iterator[Line]:
    """The JSON objects of a JSONL file, or of stdin, each with a text in `field`.

    Raises Spec2SeqError naming the line for anything else.
    """
    for line in read_lines(path):
        where = f"{name_of(path)}: line {line.number}"
        try:
            fields = json.loads(line.text)
        except (ValueError, RecursionError) as error:
            reason = "empty" if not line.text else str(error)
            raise Spec2SeqError(f"{where}: not JSON ({reason}); allowed: one object a line") from None
        if not isinstance(fields, dict):
            raise Spec2SeqError(f"{where}: {type(fields).__name__} instead of an object; allowed: one object a line")
        if field not in fields:
            raise Spec2SeqError(f"{where}: no field {field!r}; found: {', '.join(fields) or 'no field'}")
        text = fields[field]
        if not isinstance(text, str) or any("\ud800" <= character <= "\udfff" for character in text):
            raise Spec2SeqError(f"{where}: field {field!r} is {_short(text)}; allowed: a text")
        yield Line(line.number, text if text.strip() else "", fields)


def name_of(path: Path | None) -> str:
    """What errors call the input."""
    return "stdin" if path is None else str(path)


def row_object(row: "Row", text_key: str, trace: bool) -> dict[str, Any]:
    """A row for JSON: its text under `text_key`, `tokens`, `stats`, if more than one was asked for `hypotheses`, and
    `trace` if asked for."""
    made = {text_key: row.text, "tokens": row.tokens, "stats": row.counts.as_dict()}
    if len(row.hypotheses) > 1:
        made["hypotheses"] = [
            {text_key: found.text, "tokens": found.tokens, "score": found.score} for found in row.hypotheses
        ]
    return made | {"trace": row.trace} if trace else made


def n_best(row: "Row", number: int) -> str:
    """The hypotheses of a row as lines of an n-best list; an empty row has one, of certainty."""
    found = [(hypothesis.text, hypothesis.score) for hypothesis in row.hypotheses] or [("", 0.0)]
    return "\n".join(f"{number} ||| {one_line(text)} ||| {score:.6f}" for text, score in found)


def one_line(text: str | None) -> str:
    """A text as one line: a line break inside would shift all lines that follow."""
    return " ".join((text or "").splitlines())


def to_json(value: Any) -> str:
    """One line of JSON, readable unless the input smuggled in what UTF-8 cannot write."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


@contextlib.contextmanager
def writer(path: Path | None) -> Iterator[Callable[[str], None]]:
    """A function that writes one line and flushes it, to stdout or to a file, gzipped if its name ends in .gz.

    The file appears under its name only when all is written. Until then it is NAME.part, which an error removes
    and an interruption leaves, with the finished lines.
    """
    if path is None:
        yield _line_writer(sys.stdout.buffer)
        return
    target = path.resolve()
    part = target.with_name(f"{target.name}.part")
    if target.exists() and not target.is_file() and not target.is_dir():
        part = target  # a device or a pipe is written as it stands
    try:
        stream = _create(part, target)
    except OSError as error:
        raise UsageError(f"--output {path}: cannot be written: {error.strerror}") from None
    try:
        with stream:
            yield _line_writer(stream)
    except KeyboardInterrupt:
        if part != target and part.stat().st_size:
            raise KeyboardInterrupt(f"the finished lines are in {part}") from None
        _discard(part, target)
        raise
    except BaseException:
        _discard(part, target)
        raise
    if part != target:
        part.replace(target)


def _create(part: Path, target: Path) -> BinaryIO:
    if target.is_dir():
        raise IsADirectoryError(0, "it is a folder")
    stream = part.open("wb")
    if target.suffix != ".gz":
        return stream
    # Without a name and a time in it the same lines give the same bytes.
    return _Zipped(filename="", mode="wb", fileobj=stream, mtime=0)


class _Zipped(gzip.GzipFile):
    """Closes the file below, too."""

    def close(self) -> None:
        below = self.fileobj
        super().close()
        if below is not None:
            below.close()


def _discard(part: Path, target: Path) -> None:
    if part != target:
        part.unlink(missing_ok=True)


def _line_writer(stream: BinaryIO) -> Callable[[str], None]:
    def write(line: str) -> None:
        stream.write(line.encode() + b"\n")
        stream.flush()

    return write


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[BinaryIO]:
    if path is None:
        yield sys.stdin.buffer
        return
    try:
        stream = (gzip.open if path.suffix == ".gz" else open)(path, "rb")
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise UsageError(f"{path}: {reason}; allowed: a text file in UTF-8") from None
    with stream:
        try:
            yield stream
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise Spec2SeqError(f"{path}: not readable as gzip: {error}") from None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def is_rereadable(path: Path | None) -> bool:
    """Whether the input can be read twice."""
    return path is not None and os.path.isfile(path)


def check_readable(path: Path) -> None:
    """Raise UsageError if the file cannot be opened. A pipe is not touched: opening it takes from it."""
    if is_rereadable(path) or not path.exists() or path.is_dir():
        with _opened(path):
            pass
