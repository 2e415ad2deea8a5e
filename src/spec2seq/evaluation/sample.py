"""Pairs of texts from a TSV or JSONL file, and a sample of them that is stratified by length and always the same."""

import argparse
import importlib.resources
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spec2seq import io
from spec2seq.config import check_range
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.evaluation.command import run_main
from spec2seq.files import write_text

LINES = 200
FIELDS = ("source", "reference")  # of .jsonl


@dataclass(frozen=True)
class Pair:
    """A source, its reference and the name of the document it is from."""

    source: str
    reference: str
    origin: str = ""


def read_pairs(path: str | Path, fields: tuple[str, str] = FIELDS) -> list[Pair]:
    """Read source TAB reference [TAB origin], or the two `fields` of the objects of a .jsonl. Raises UsageError for a
    file that is missing, empty or not that."""
    path = Path(path)
    if path.suffix == ".jsonl":
        sources, references = (io.read_fields(path, field) for field in fields)
        return [Pair(a.text, b.text) for a, b in zip(sources, references, strict=True)]
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text: {error}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        columns = line.rstrip("\r").split("\t")
        if len(columns) not in (2, 3) or not columns[0].strip() or not columns[1].strip():
            raise UsageError(f"{path}:{number}: expected source TAB reference, and perhaps TAB origin")
        pairs.append(Pair(*columns))
    if not pairs:
        raise UsageError(f"{path}: no lines")
    return pairs


def committed_sample() -> list[Pair]:
    """The sample that comes with the package."""
    with importlib.resources.as_file(importlib.resources.files("spec2seq") / "data" / "ende-sample.tsv") as path:
        if not path.is_file():
            raise Spec2SeqError("the package's own sample data/ende-sample.tsv is missing; name a file instead")
        return read_pairs(path)


def pairs_to_measure(path: Path | None = None, fields: tuple[str, str] = FIELDS) -> tuple[list[Pair], str]:
    """Pairs to measure on and what to call them: `path`, else the test file in $SPEC2SEQ_DATA, else the sample."""
    if path is not None:
        return read_pairs(path, fields), Path(path).name
    folder = os.environ.get("SPEC2SEQ_DATA")
    if folder:
        return read_pairs(Path(folder) / "ende.test.tsv"), "ende.test.tsv"
    return committed_sample(), "ende-sample.tsv"


def stratified(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """The pairs at `stratified_indices`."""
    return [pairs[index] for index in stratified_indices(pairs, count)]


def stratified_indices(pairs: Sequence[Pair], count: int) -> list[int]:
    """The middle pair of each of `count` equally large strata by source length in words, in the order of the file;
    all pairs if there are fewer."""
    check_range("lines", count, low=1)
    if count >= len(pairs):
        return list(range(len(pairs)))
    by_length = sorted(range(len(pairs)), key=lambda index: (len(pairs[index].source.split()), index))
    return sorted(by_length[(2 * stratum + 1) * len(pairs) // (2 * count)] for stratum in range(count))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the committed sample from the test file: python -m spec2seq.evaluation.sample TEST.tsv OUT.tsv"""
    parser = argparse.ArgumentParser(prog="python -m spec2seq.evaluation.sample", description=main.__doc__)
    parser.add_argument("test", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--lines", type=int, default=LINES)
    asked = parser.parse_args(arguments)
    pairs = [pair for pair in read_pairs(asked.test) if 8 <= len(pair.source.split()) <= 60]
    chosen = stratified(pairs, asked.lines)
    write_text(asked.out, "".join(f"{pair.source}\t{pair.reference}\t{pair.origin}\n" for pair in chosen))


if __name__ == "__main__":
    run_main(main)
