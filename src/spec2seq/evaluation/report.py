"""report.html from results.json alone: one file without scripts, readable in print, in the dark and without colour.

python -m spec2seq.evaluation.report out/demo/results.json     writes report.html beside it
"""

import argparse
import html
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from spec2seq.errors import Spec2SeqError
from spec2seq.evaluation.command import run_main
from spec2seq.evaluation.files import read_json, write_text
from spec2seq.evaluation.plots import Line, line_plot
from spec2seq.evaluation.tables import is_lossless, method_label


def write_report(results: Path, report: Path) -> Path:
    """Read results.json and write the page. Raises Spec2SeqError if it is not the result of a demo."""
    text = render(read_json(results))
    write_text(report, text)
    return report


def render(results: dict[str, Any]) -> str:
    """The page as text. Every string of the results is escaped."""
    try:
        parts = [
            _summary(results), _methods(results["rows"], results["data"]), _latency(results["latency"]),
            _acceptance(results["acceptance"], list(results["latency"]["milliseconds"])),
            _sentences(results["sentences"]), _made(results),
        ]  # fmt: skip
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise Spec2SeqError(f"not the results of a demo: {type(error).__name__} {error}") from None
    style = resources.files("spec2seq").joinpath("data", "report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>spec2seq demo</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _e(value: Any) -> str:
    return html.escape(str(value))


def _summary(results: dict[str, Any]) -> str:
    greedy, best = results["rows"][0], max(_lossless(results["rows"]), key=lambda row: row["speedup"]["median"])
    calls, speed = best["tokens_per_verifier_call"], best["speedup"]
    text = (
        f"{_e(results['data']['lines'])} lines of English were translated to German in "
        f"{len(results['rows'])} ways, one line at a time. The fastest way "
        f"that loses nothing, {_e(_label(best))}, wrote {calls:.2f} tokens with each pass "
        f"of the large model and took {1 / speed['median']:.0%} of the time of {_e(_label(greedy))} "
        f"({speed['median']:.2f} times as fast); {best['identical_to_greedy']:.1%} of its translations are "
        f"identical, token for token."
    )
    return f"<h1>spec2seq demo</h1>\n<p>{text}</p>"


def _lossless(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows[1:] if is_lossless(row)]


def _label(row: dict[str, Any]) -> str:
    return method_label(row | {"again": False})


def _methods(rows: Sequence[dict[str, Any]], data: dict[str, Any]) -> str:
    head = ["method", "seconds", "ms per token", "tokens per verifier call", "BLEU", "chrF", "identical to greedy",
            "speed-up against greedy", "middle half of the rounds", "middle half of the lines"]  # fmt: skip
    made = []
    for row in rows:
        speed, lines = row["speedup"], row["speedup_by_line"]
        made.append([
            _label(row), f"{row['seconds']['median']:.2f}", f"{row['ms_per_token']:.2f}",
            f"{row['tokens_per_verifier_call']:.2f}", f"{row['bleu']:.1f}", f"{row['chrf']:.1f}",
            f"{row['identical_to_greedy']:.1%}", f"{speed['median']:.2f}×", f"{speed['low']:.2f}–{speed['high']:.2f}×",
            f"{lines['low']:.2f}–{lines['high']:.2f}×",
        ])  # fmt: skip
    note = (
        f"Quality, counts and identity are of all {data['lines']} lines of {data['file']}; seconds of "
        f"{data['timed_lines']} of them, stratified by length: medians over rounds (here {data['rounds']}) in which "
        f"the methods took turns. {rows[0]['bleu_signature']}; {rows[0]['chrf_signature']}."
    )
    return f"<h2>The methods</h2>\n{_table(head, made)}\n<p class=note>{_e(note)}</p>"


def _latency(latency: dict[str, Any]) -> str:
    tokens, methods = latency["mean_tokens"], latency["milliseconds"]
    lines = [Line(name, tokens, values, style) for style, (name, values) in enumerate(methods.items())]
    description = "Median milliseconds for a line against the length of its output, one curve a method"
    plot = line_plot(lines, "tokens of the greedy output", "ms for a line", description, "latency")
    head = ["tokens", "lines", *(f"{name}, ms" for name in methods)]
    rows = [
        [f"{low}–{high}", lines_in, *(f"{values[place]:.1f}" for values in methods.values())]
        for place, (low, high, lines_in) in enumerate(latency["bins"])
    ]
    return _figure("Time for a line against its length", plot, _table(head, rows))


def _acceptance(acceptance: dict[str, Any], methods: Sequence[str]) -> str:
    lines, longest = [], 0
    for name, counts in acceptance.items():
        shown = [place for place, drafted in enumerate(counts["drafted_at"]) if drafted >= 20]
        share = [counts["accepted_at"][place] / counts["drafted_at"][place] for place in shown]
        lines.append(Line(name, [place + 1 for place in shown], share, methods.index(name)))
        longest = max(longest, len(counts["drafted_at"]))
    description = "Share of the tokens drafted at each position of a draft that were accepted, one curve a method"
    plot = line_plot(lines, "position in the draft", "share accepted", description, "acceptance", top=1.0)
    head = ["position", *(f"{name}: accepted of drafted" for name in acceptance)]
    rows = [[place + 1, *(_accepted(counts, place) for counts in acceptance.values())] for place in range(longest)]
    note = "<p class=note>Positions that were drafted fewer than 20 times are in the table only.</p>"
    return _figure("How many drafted tokens stand", plot, _table(head, rows)) + note


def _accepted(counts: dict[str, list[int]], place: int) -> str:
    if place >= len(counts["drafted_at"]):
        return "–"
    drafted, accepted = counts["drafted_at"][place], counts["accepted_at"][place]
    return f"{accepted} of {drafted} ({accepted / drafted:.0%})"


def _sentences(sentences: Sequence[dict[str, Any]]) -> str:
    parts = [
        "<h2>Who wrote what</h2>",
        "<p>The first lossless method of the table: its drafter proposes, the verifier keeps what it would have "
        "written itself and puts its own token where it would not. "
        '<span class="d">Underlined on a tint: the draft stands.</span> '
        '<span class="v">Bold: the verifier wrote it.</span></p>',
    ]
    for sentence in sentences:
        tokens = "".join(f'<span class="{_writer(t["by"])}">{_e(t["text"])}</span>' for t in sentence["tokens"])
        count = f"{sentence['new_tokens']} tokens in {sentence['verifier_calls']} passes of the verifier"
        parts.append(
            f'<section class="sentence"><dl><dt>English</dt><dd lang="en">{_e(sentence["source"])}</dd>'
            f'<dt>written</dt><dd lang="de" class="output">{tokens}<br><small lang="en">{_e(count)}</small></dd>'
            f'<dt>reference</dt><dd lang="de">{_e(sentence["reference"])}</dd></dl></section>'
        )
    return "\n".join(parts)


def _writer(by: str) -> str:
    return "d" if by == "d" else "v"


def _made(results: dict[str, Any]) -> str:
    rows = []
    for name, value in results["manifest"].items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        rows.append([name, "–" if value in (None, "") else value])
    return f"<h2>How this was made</h2>\n{_table(['what', 'value'], rows, words=True)}"


def _figure(title: str, plot: str, table: str) -> str:
    shown = f'<div class="plot" tabindex="0">{plot}</div>\n<figcaption>The same in numbers</figcaption>'
    return f"<h2>{_e(title)}</h2>\n<figure>\n{shown}\n{table}\n</figure>"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], words: bool = False) -> str:
    """The first column names the row; the others are numbers unless `words`. Scrolls by itself where it is narrow."""
    cells = "".join(f'<th scope="col">{_e(name)}</th>' for name in head)
    body = "\n".join(
        f'<tr><th scope="row">{_e(row[0])}</th>' + "".join(f"<td>{_e(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    kind = ' class="words"' if words else ""
    return (
        f'<div class="scroll" tabindex="0"><table{kind}>\n<thead><tr>{cells}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write report.html beside a results.json."""
    parser = argparse.ArgumentParser(prog="python -m spec2seq.evaluation.report", description=main.__doc__)
    parser.add_argument("results", type=Path)
    asked = parser.parse_args(arguments)
    print(write_report(asked.results, asked.results.with_name("report.html")))


if __name__ == "__main__":
    run_main(main)
