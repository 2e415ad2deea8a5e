"""Lines through a model: rows in order, empty lines without it, long lines in pieces."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from spec2seq import documents
from spec2seq.errors import Spec2SeqError
from spec2seq.io import Line

if TYPE_CHECKING:  # both import torch
    from spec2seq.api import Method, Seq2Seq
    from spec2seq.decoding.stats import Stats
    from spec2seq.generation import Row

Cut = Callable[[str], list[documents.Piece]]  # a text into pieces that the model can take


def source_ids(model: "Seq2Seq", line: Line, truncate: bool, where: str) -> list[int]:
    """Token ids of a line, end token included. Raises Spec2SeqError naming the line if it is too long."""
    return model.source_ids(line.text, f"{where}: line {line.number}", truncate)


def _sources(
    model: "Seq2Seq", line: Line, truncate: bool, where: str, cut: Cut | None
) -> tuple[list[documents.Piece] | None, list[list[int]]]:
    """The pieces of a line, None where it is not cut, and the ids of each; of an empty line nothing."""
    if not line.text:
        return None, []
    if cut is None:
        return None, [source_ids(model, line, truncate, where)]
    made = cut(line.text)
    return made, [source_ids(model, Line(line.number, piece.text), truncate, where) for piece in made]


class Rows:
    """Runs lines through a model: (line, row) pairs in order, an empty line giving an empty row without the model.
    With `cut` a line goes through it in pieces, and its row is theirs joined.

    A line that cannot be used ends the input; what came before it is still given, then the error is raised.
    """

    def __init__(
        self, model: "Seq2Seq", method: "Method", lines: Iterable[Line], where: str, *, truncate: bool = False,
        stats: "Stats | None" = None, cut: Cut | None = None, **run: Any,
    ):  # fmt: skip
        self.model, self.lines, self.where, self.truncate, self.cut = model, iter(lines), where, truncate, cut
        self.ahead: deque[tuple[Line, list[documents.Piece] | None]] = deque()  # read, but not yet given back
        self.unfed: deque[list[int]] = deque()  # of the last of them, if the model has not got it
        self.error: Spec2SeqError | None = None
        self.rows = model.stream(self._feed(), method, stats=stats, **run)

    def __iter__(self) -> "Iterator[tuple[Line, Row]]":
        from spec2seq.decoding.stats import Counts
        from spec2seq.generation import Row

        # Reading no line before the ones at hand are answered keeps a conversation over pipes alive.
        while self.ahead or self._read():
            line, pieces = self.ahead.popleft()
            if not line.text:
                yield line, Row("", [], Counts(), "")
            elif pieces is None:
                yield line, next(self.rows)
            else:
                yield line, documents.join(pieces, [next(self.rows) for _ in pieces])
        if self.error is not None:
            raise self.error

    def _read(self) -> bool:
        try:
            line = next(self.lines, None)
            if line is None:
                return False
            pieces, ids = _sources(self.model, line, self.truncate, self.where, self.cut)
        except Spec2SeqError as error:
            self.error, self.lines = error, iter(())
            return False
        self.ahead.append((line, pieces))
        self.unfed.extend(ids)
        return True

    def _feed(self) -> Iterator[list[int]]:
        while self.unfed or self._read():
            if self.unfed:
                yield self.unfed.popleft()


def check_lines(model: "Seq2Seq", lines: Iterable[Line], truncate: bool, where: str, cut: Cut | None = None) -> int:
    """Raise what `Rows` would raise, before anything is written; returns how many lines there are."""
    count = 0
    for line in lines:
        _sources(model, line, truncate, where, cut)
        count += 1
    return count
