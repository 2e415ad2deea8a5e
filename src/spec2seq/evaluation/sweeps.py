"""Grids of thresholds: every combination measured on a task, and which of them no other beats."""

import html
import importlib.resources
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spec2seq.evaluation.document import markdown_table as table
from spec2seq.evaluation.plots import Axes, Line, line_plot
from spec2seq.evaluation.published import POINTS
from spec2seq.evaluation.tables import number, ratio
from spec2seq.files import write_json, write_text
from spec2seq.options import OPTIONS, MethodOptions

SHORT = {"fallback_threshold": "fallback", "rollback_threshold": "rollback", "max_draft_tokens": "cap",
         "block_size": "block", "verify_tail": "tail"}  # fmt: skip

HEAD = ("speed-up", "chunks' median and quartiles", "fallback %", "rollback %", "tokens per verifier call")


def grid(method: str, drafter: str, values: Mapping[str, str | None]) -> dict[str, MethodOptions]:
    """Every combination of `values` (an option's values with commas between; none is a value) as MethodOptions, by
    name. Raises UsageError for a value that its option does not allow."""
    lists = {
        name: [OPTIONS[name].parse(one.strip(), OPTIONS[name].flag) for one in text.split(",")]
        for name, text in values.items()
        if text is not None
    }
    made = {}
    for combination in itertools.product(*lists.values()):
        chosen = dict(zip(lists, combination, strict=True))
        name = " ".join(f"{SHORT.get(key, key)}={_shown(value)}" for key, value in chosen.items()) or method
        made[name] = MethodOptions(method=method, drafter=drafter, **chosen)
    return made


def unbeaten(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each point whether no other is at least as good in both and better in one."""
    return [not any(x >= a and y >= b and (x, y) != (a, b) for x, y in points) for a, b in points]


def frontier(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the rows that none beats in both score and speed-up, the fastest last."""
    best = unbeaten([(row["speedup"], row["score"]) for row in rows])
    chosen = [row for row, on in zip(rows, best, strict=True) if on]
    return [row["method"] for row in sorted(chosen, key=lambda row: row["speedup"])]


def write_sweep(out: Path, about: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> list[Path]:
    """sweep.json, sweep.md and frontier.html in `out`; returns their paths."""
    best = frontier(rows)
    write_json(out / "sweep.json", {"about": dict(about), "frontier": best, "rows": list(rows)})
    write_text(out / "sweep.md", _page(about, rows, best))
    write_text(out / "frontier.html", _plot_page(about, rows, best))
    return [out / name for name in ("sweep.json", "sweep.md", "frontier.html")]


def frontier_plot(task: str, metric: str, rows: Sequence[Mapping[str, Any]], best: Sequence[str]) -> str:
    """An `<svg>`: all points, the frontier as a line, and what is published for the task behind them."""
    by_name = {row["method"]: row for row in rows}
    ends = [by_name[name] for name in best]
    lines = [Line("measured", *places(rows), 0, joined=False), Line("frontier", *places(ends), 0)]
    for style, (source, mode) in enumerate(
        itertools.product(("original", "reproduction"), ("unaligned", "aligned")), 1
    ):
        found = [getattr(one, source) for one in POINTS if (one.task, one.mode) == (task, mode)]
        if found:
            scores, speedups = zip(*found, strict=True)
            lines.append(Line(f"{source}, {mode}", speedups, scores, style, joined=False))
    words = f"Speed-up over vanilla against {metric} on {task}: {len(rows)} settings, {len(best)} on the frontier"
    return line_plot(lines, Axes("speed-up over vanilla", metric, from_zero=False), words, "frontier")


def cells(row: Mapping[str, Any]) -> list[str]:
    """What a table says of a row of `runs.results` beside its score, under `HEAD`."""
    spread, stats = row["speedup_of_chunks"], row["stats"]
    return [
        f"{row['speedup']:.2f}×", ratio(spread), number(stats["fallback_percentage"]),
        number(stats["rollback_percentage"]), number(stats["tokens_per_verifier_call"]),
    ]  # fmt: skip


def places(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    return [row["speedup"] for row in rows], [row["score"] for row in rows]


def _page(about: Mapping[str, Any], rows: Sequence[dict[str, Any]], best: Sequence[str]) -> str:
    head = ["method", about["metric"], *HEAD, "on the frontier"]
    lines = [[row["method"], number(row["score"]), *cells(row), "yes" if row["method"] in best else ""] for row in rows]
    facts = ", ".join(f"{name} {value}" for name, value in about.items())
    return "\n".join([f"# Sweep on {about['task']}", "", f"Made by `spec2seq sweep`; do not edit. {facts}.", "",
                      *table(head, lines)]) + "\n"  # fmt: skip


def _plot_page(about: Mapping[str, Any], rows: Sequence[dict[str, Any]], best: Sequence[str]) -> str:
    css = (importlib.resources.files("spec2seq") / "data" / "report.css").read_text(encoding="utf-8")
    title = html.escape(f"Sweep on {about['task']}")
    plot = frontier_plot(about["task"], about["metric"], rows, best)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n<style>{css}</style>\n'
        f"<main>\n<h1>{title}</h1>\n{plot}\n</main>\n</html>\n"
    )


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value).lower()
