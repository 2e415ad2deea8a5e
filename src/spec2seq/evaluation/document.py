"""A page as blocks, written as one self-contained HTML file or as Markdown. No script; readable in print, in the dark
and without colour."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; `code` stands between backticks."""

    text: str


@dataclass(frozen=True)
class Table:
    """The first `left` columns are words and aligned left, the others numbers, unless all are `words`."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    left: int = 1
    words: bool = False


@dataclass(frozen=True)
class Figure:
    """A plot (an `<svg>`) and the same in numbers; Markdown has the numbers only."""

    title: str
    plot: str
    table: Table
    note: str = ""


@dataclass(frozen=True)
class Sentence:
    """A source, its reference and the output, token by token with who wrote it: d or v."""

    source: str
    reference: str
    tokens: Sequence[tuple[str, str]]
    note: str


Block = Heading | Text | Table | Figure | Sentence


def as_markdown(blocks: Sequence[Block | str]) -> str:
    """The blocks as Markdown; a string is some already."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """The blocks as a page. Every string of them is escaped, plots excepted."""
    style = resources.files("spec2seq").joinpath("data", "report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{_e(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(_html(block) for block in blocks)
        + "\n</main>\n</body>\n</html>\n"
    )


def _markdown(block: Block | str) -> str:
    match block:
        case str():
            return block
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Text(text):
            return text
        case Table():
            return "\n".join(markdown_table(block.head, block.rows, len(block.head) if block.words else block.left))
        case Figure():
            parts = [f"## {block.title}", _markdown(block.table), *([block.note] if block.note else [])]
            return "\n\n".join(parts)
        case Sentence():
            written = "".join(_marked(text, by) for text, by in block.tokens)
            lines = [f"- {_line(block.source)}", f"written: {written} ({block.note})", _line(block.reference)]
            return "\n  - ".join([*lines[:2], f"reference: {lines[2]}"])


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]], left: int = 1) -> list[str]:
    """The lines of a table."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    cells = ([str(cell).replace("|", "\\|") for cell in row] for row in rows)
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *cells)]


def _marked(text: str, by: str) -> str:
    """What the verifier wrote is bold; spaces stay outside of the stars, or they would be no emphasis."""
    word = text.strip()
    text = _line(text)
    return text.replace(word, f"**{word}**", 1) if by == "v" and re.fullmatch(r"\w+", word) else text


def _line(text: str) -> str:
    """A text in which Markdown sees nothing of its own."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{_e(text)}</h{level}>"
        case Text(text):
            return f"<p>{_inline(text)}</p>"
        case Table():
            return _html_table(block)
        case Figure():
            plot = (
                f'<div class="plot" tabindex="0" role="group" aria-label="{_e(block.title)}: plot">{block.plot}</div>'
            )
            note = f"\n<p class=note>{_inline(block.note)}</p>" if block.note else ""
            return (
                f"<h2>{_e(block.title)}</h2>\n<figure>\n{plot}\n<figcaption>The same in numbers</figcaption>\n"
                f"{_html_table(block.table)}\n</figure>{note}"
            )
        case Sentence():
            tokens = "".join(
                f'<span class="{"d" if by == "d" else "v"}">{_e(text)}</span>' for text, by in block.tokens
            )
            return (
                f'<section class="sentence"><dl><dt>source</dt><dd>{_e(block.source)}</dd>'
                f'<dt>written</dt><dd class="output">{tokens}<br><small>{_e(block.note)}</small></dd>'
                f"<dt>reference</dt><dd>{_e(block.reference)}</dd></dl></section>"
            )


def _html_table(table: Table) -> str:
    """The first column names the row. Scrolls by itself where it is narrow, by keyboard too."""
    cells = "".join(
        f'<th scope="col"{" class=w" if place < table.left else ""}>{_e(name)}</th>'
        for place, name in enumerate(table.head)
    )
    body = []
    for row in table.rows:
        others = "".join(
            f'<td class="w">{_e(cell)}</td>' if place < table.left else f"<td>{_e(cell)}</td>"
            for place, cell in enumerate(row[1:], 1)
        )
        body.append(f'<tr><th scope="row">{_e(row[0])}</th>{others}</tr>')
    kind = ' class="words"' if table.words else ""
    name = _e(f"table: {', '.join(table.head[:2])}")
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{name}"><table{kind}>\n'
        f"<thead><tr>{cells}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody></table></div>"
    )


def _inline(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", _e(text))


def _e(value: Any) -> str:
    return html.escape(str(value))
