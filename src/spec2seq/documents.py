"""Long input for translation: cut into sentences or windows of them that a model can take, and joined again.

What stands between two pieces (a space, none in Chinese, line breaks) is kept and comes between their outputs. No piece
goes over a line break.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spec2seq.config import check_choice, check_range
from spec2seq.errors import UsageError

if TYPE_CHECKING:  # both import torch
    from spec2seq.api import Seq2Seq
    from spec2seq.generation import Row

UNITS = ("sentences", "windows")
# An end of sentence, closing quotes and brackets behind it, and then space and something that can begin a sentence; in
# scripts without spaces the end is enough.
_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s+["'“‘«„(\[¿¡]*[^\s\W_a-zß-öø-ÿа-яё])|[。！？｡]+[”’」』）]*""")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|e\.g|i\.e|cf|Fig|Nr|bzw|z\.B|ca|[^\W\d_])\.$")


@dataclass(frozen=True)
class Piece:
    """A part of a text, and what stood between it and the part before."""

    text: str
    between: str = ""


def sentences(text: str) -> list[Piece]:
    """The sentences of a text, by punctuation and line breaks; an initial or a usual abbreviation ends none. Joined
    again they are the text, but for the space at its ends."""
    made, behind = [], 0
    for first, last in _spans(text):
        words = text[first:last].strip()
        if words:
            start = text.index(words, first)
            made.append(Piece(words, text[behind:start] if made else ""))
            behind = start + len(words)
    return made


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Where sentences lie in a text, the space around them included."""
    for line in re.finditer(r"[^\r\n]+", text):
        start = line.start()
        for end in _END.finditer(text, *line.span()):
            if not _ABBREVIATION.search(text[start : end.end()]):
                yield start, end.end()
                start = end.end()
        yield start, line.end()


def pieces(text: str, model: "Seq2Seq", unit: str = "sentences", window: int | None = None) -> list[Piece]:
    """A text in pieces of at most `window` tokens (default: what the model has positions for, or 512): a sentence
    each, or with unit "windows" as many sentences as fit. A sentence that is too long is cut between words, a word that
    is too long within. Raises UsageError for another unit, or a window out of range or filled by the model's prefix.
    """
    check_choice("unit", unit, UNITS)
    most = _most(model, window)
    cut = [part for sentence in sentences(text) for part in _fitting(sentence, model, most)]
    return cut if unit == "sentences" else _windows(cut, model, most)


def _most(model: "Seq2Seq", window: int | None) -> int:
    """How many tokens a piece may have. A sentence of the model's training is seldom as long as its positions."""
    own = model.model.architecture.max_source_positions
    check_range("window", window, low=8, high=own)
    most = window or min(own or 512, 512)
    taken = len(model.encode_text(""))
    if most - taken < 2:
        raise UsageError(f"window is {most} tokens, the model's prefix takes {taken}; allowed: at least {taken + 2}")
    return most


def _fits(text: str, model: "Seq2Seq", most: int) -> bool:
    return len(model.encode_text(text)) <= most


def _fitting(piece: Piece, model: "Seq2Seq", most: int) -> Iterator[Piece]:
    """A piece, or its halves until they fit."""
    if len(piece.text) < 2 or _fits(piece.text, model, most):
        yield piece
        return
    middle = len(piece.text) // 2
    spaces = [gap.span() for gap in re.finditer(r"\s+", piece.text)]
    first, last = min(spaces, key=lambda span: abs(span[0] - middle), default=(middle, middle))
    yield from _fitting(Piece(piece.text[:first], piece.between), model, most)
    yield from _fitting(Piece(piece.text[last:], piece.text[first:last]), model, most)


def _windows(parts: Sequence[Piece], model: "Seq2Seq", most: int) -> list[Piece]:
    made: list[Piece] = []
    for part in parts:
        joined = made and made[-1].text + part.between + part.text
        if joined and not re.search(r"[\r\n]", part.between) and _fits(joined, model, most):
            made[-1] = dataclasses.replace(made[-1], text=joined)
        else:
            made.append(part)
    return made


def join(pieces: Sequence[Piece], rows: Sequence["Row"]) -> "Row":
    """The outputs of a text's pieces as one: texts with what stood between their sources, tokens behind each other
    (each with its end token), counts added. Raises UsageError for n-best lists: those of several pieces make none."""
    from spec2seq.decoding.stats import Counts
    from spec2seq.generation import Row

    if any(len(row.hypotheses) > 1 for row in rows):
        raise UsageError("a document in pieces has no n-best list; num_return_sequences must be 1")
    counts = Counts()
    for row in rows:
        counts.add(row.counts)
    text = "".join(piece.between + (row.text or "") for piece, row in zip(pieces, rows, strict=True))
    traces = [row.trace for row in rows]
    trace = None if None in traces else "".join(traces)
    return Row(text, [token for row in rows for token in row.tokens], counts, trace)
