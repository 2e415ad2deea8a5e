"""Two line-aligned files, raw or BPE'd, as one TSV of pairs: a stream of chunks over several processes."""

import contextlib
import functools
import gzip
import hashlib
import multiprocessing
import re
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import BinaryIO

from spec2seq import io
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.evaluation.progress import progress
from spec2seq.files import replacing
from spec2seq.training.data import Pair, misfit
from spec2seq.training.recipe import DataConfig

CHUNK = 1000  # lines; what a process takes at a time
REASONS = ("empty", "words", "ratio", "duplicate")
_CONTINUED = re.compile("@@( |$)")


@dataclass(frozen=True)
class Preparation:
    """What happens to each pair: BPE marks joined, Moses detokenization by (source, target) language, filters."""

    filters: DataConfig
    remove_bpe: bool = False
    detokenize: tuple[str, str] | None = None


def remove_bpe(line: str) -> str:
    """Join the pieces that subword-nmt cut, `@@ ` inside and `@@` at the end of the line."""
    return _CONTINUED.sub("", line)


def prepare(source: Path, target: Path, out: Path, how: Preparation, workers: int = 1) -> Counter[str]:
    """Write the pairs that fit to `out` (.tsv or .tsv.gz), in order; a tab inside a line becomes a space.

    Of what is past only hashes of 8 bytes stay in memory, and only with `how.filters.dedupe`. Returns how many were
    `kept` or dropped for each of REASONS. `out` appears when all is written.

    Raises UsageError for a file that cannot be used, Spec2SeqError if the files have different numbers of lines.
    """
    if not out.name.endswith((".tsv", ".tsv.gz")):
        raise UsageError(f"--out {out}: unknown kind of file; allowed: .tsv, .tsv.gz")
    for path in (source, target):
        io.check_readable(path)
    counts: Counter[str] = Counter(dict.fromkeys(("kept", *REASONS), 0))
    seen: set[int] = set()
    with (
        _pool(workers) as submit,  # first: a fork has no use for the thread of a bar or for open files
        progress("thousand lines", None) as advance,
        replacing(out) as temporary,
        created(temporary, out.suffix == ".gz") as file,
    ):
        for rows in _ordered(submit, _chunks(source, target), how, ahead=2 * workers):
            kept = []
            for reason, key, line in rows:
                if key is not None:
                    reason = "duplicate" if key in seen else None
                    seen.add(key)
                counts[reason or "kept"] += 1
                if reason is None:
                    kept.append(line)
            file.write(b"".join(kept))
            advance()
    return counts


def _chunks(source: Path, target: Path) -> Iterator[list[tuple[str, str]]]:
    pairs = _pairs(source, target)
    while chunk := list(islice(pairs, CHUNK)):
        yield chunk


def _pairs(source: Path, target: Path) -> Iterator[tuple[str, str]]:
    lines = [0, 0]
    for pair in zip_longest(io.read_lines(source), io.read_lines(target)):
        lines = [count + (side is not None) for count, side in zip(lines, pair, strict=True)]
        if lines[0] == lines[1]:  # else one file has ended, and the lines of the other are only counted
            yield pair[0].text, pair[1].text
    if lines[0] != lines[1]:
        raise Spec2SeqError(
            f"{source} has {lines[0]} lines, {target} has {lines[1]}; allowed: files aligned line by line"
        )


Row = tuple[str | None, int | None, bytes]  # why it was dropped, hash if duplicates are dropped, line


def _work(chunk: list[tuple[str, str]], how: Preparation) -> list[Row]:
    detokenizers = [_detokenizer(language) for language in how.detokenize or ()]
    rows: list[Row] = []
    for texts in chunk:
        if how.remove_bpe:
            texts = tuple(map(remove_bpe, texts))
        if detokenizers:
            texts = tuple(d.detokenize(text.split()) for d, text in zip(detokenizers, texts, strict=True))
        pair = Pair(*(text.replace("\t", " ").strip() for text in texts))
        line = f"{pair.source}\t{pair.target}\n".encode()
        reason = misfit(pair, how.filters)
        hashed = reason is None and how.filters.dedupe
        key = int.from_bytes(hashlib.blake2b(line, digest_size=8).digest()) if hashed else None
        rows.append((reason, key, b"" if reason else line))
    return rows


@functools.cache
def _detokenizer(language: str):
    from sacremoses import MosesDetokenizer

    return MosesDetokenizer(lang=language)


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Callable]:
    """A function like Pool.apply_async that gives a function to call for the result."""
    if workers == 1:
        yield lambda function, arguments: functools.partial(function, *arguments)
        return
    # An interruption is the parent's business: it ends them.
    with multiprocessing.Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield lambda function, arguments: pool.apply_async(function, arguments).get


def _ordered(submit, chunks, how: Preparation, ahead: int) -> Iterator[list[Row]]:
    """Results in the order of the chunks, at most `ahead` of them begun: Pool.imap would read the whole corpus."""
    pending: deque[Callable[[], list[Row]]] = deque()
    for chunk in chunks:
        pending.append(submit(_work, (chunk, how)))
        if len(pending) > ahead:
            yield pending.popleft()()
    while pending:
        yield pending.popleft()()


@contextlib.contextmanager
def created(path: Path, compressed: bool) -> Iterator[BinaryIO]:
    """The file opened to be written, and gzipped if `compressed`."""
    with path.open("wb") as raw:
        if compressed:
            # Without name and time the same pairs give the same bytes.
            with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
                yield file
        else:
            yield raw
