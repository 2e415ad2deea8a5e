"""bild.json as a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from spec2seq.evaluation.document import Block, Figure, Heading, Table, Text
from spec2seq.evaluation.plots import Axes, Line, line_plot
from spec2seq.evaluation.runs import VANILLA
from spec2seq.evaluation.sweeps import HEAD, cells, places
from spec2seq.evaluation.tables import SCORES, manifest_rows, number

COLUMNS = ("against vanilla", *HEAD, "discarded %", "unverified %", "tokens, vanilla 1")


def blocks(results: Mapping[str, Any]) -> list[Block]:
    """Everything in bild.json."""
    data, manifest, ablations = results["data"], results["manifest"], results["ablations"]
    metric = SCORES[data["metric"]]
    columns = ("", metric, *COLUMNS)
    made: list[Block] = [
        Heading(f"BiLD on {data['name']}", 1),
        Text(f"Made by `{manifest['command']}`; do not edit. {manifest['dtype']}, {manifest['threads']} threads. A "
             "speed-up is over greedy of the same large model on the same engine (vanilla), decoded right before or "
             "after each chunk of lines, of all seconds, with the median and the quartiles of the chunks. Unverified "
             "are drafted tokens at the end of an output that the large model never saw. Seconds are those of whole "
             "outputs: of a speed-up, the last column says how much is fewer tokens. Sources are cut where the model "
             f"ends; as they are they would score {number(data['unchanged'])} on test."),
        Heading("Test"),
        Text(f"{data['test_lines']} lines. For each little model the fastest setting, by {data['timed_lines']} dev "
             f"lines, whose {metric} on {data['dev_lines']} dev lines is at most 0.1 (no drop) or 1 (one point) below "
             "vanilla's (tail verified: drafts that end an output, too): "
             + _chosen(results["chosen"]) + " The little model writes at most 10 tokens in a row; a measured cap is "
             "chosen while decoding, from 0 to 10, and what is written then depends on it."),
    ]  # fmt: skip
    for size, rows in results["test"].items():
        made += [Heading(f"Batch size {size}", 3), Table(columns, _rows(rows))]
    made += [_frontier(results["dev"], metric), Heading("Dev: every setting"),
             Text(f"{data['timed_lines']} lines at batch size 1; below, what is faster than vanilla there with its "
                  f"{metric} on {data['dev_lines']} lines.")]  # fmt: skip
    for mode, found in results["dev"].items():
        made += [Heading(f"{mode.capitalize()} little model", 3), Table(columns, _rows(found["rows"])),
                 Table(("", metric, "against vanilla", "speed-up"), _scores(found))]  # fmt: skip
    made += [
        Heading("Ablations"),
        Text(f"{ablations['mode'].capitalize()} little model, dev, {_setting(ablations['setting'])}, at most 10 tokens "
             "of the little model in a row unless a cap is named."),
        Table(columns, _rows(ablations["rows"])),
        Heading("Machine and versions"), manifest_rows(manifest),
    ]  # fmt: skip
    return made


def _chosen(chosen: Mapping[str, Mapping[str, Sequence[float] | None]]) -> str:
    found = []
    for mode, goals in chosen.items():
        for goal, setting in goals.items():
            found.append(f"{mode}, {goal}: {_setting(setting) if setting else 'none is faster than vanilla'}")
    return "; ".join(found) + "."


def _setting(setting: Sequence[float]) -> str:
    fallback, rollback, tail = setting
    return f"fallback {fallback:g}, rollback {rollback:g}{tail * ', tail verified'}"


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    made = []
    for row in rows:
        shares = (100 * row["stats"][name] / row["stats"]["new_tokens"] for name in ("discarded", "unverified"))
        against = f"{row['score'] - rows[0]['score']:+.2f}"
        tokens = number(row["stats"]["new_tokens"] / rows[0]["stats"]["new_tokens"])
        made.append(
            [row["method"], number(row["score"]), against, *cells(row), *(number(one, 1) for one in shares), tokens]
        )
    return made


def _scores(found: Mapping[str, Any]) -> list[list[str]]:
    speedups, scores = {row["method"]: row["speedup"] for row in found["rows"]}, found["scores"]
    order = sorted(scores, key=lambda name: (name != VANILLA, -scores[name]))
    return [
        [name, number(scores[name]), f"{scores[name] - scores[VANILLA]:+.2f}", f"{speedups[name]:.2f}×"]
        for name in order
    ]


def _frontier(dev: Mapping[str, Mapping[str, Any]], metric: str) -> Figure:
    lines, best = [], []
    for style, (mode, found) in enumerate(dev.items()):
        by_name = {row["method"]: row for row in found["rows"]}
        ends = [by_name[name] for name in found["frontier"]]
        lines += [Line(f"{mode}, all", *places(found["rows"]), 2 * style, joined=False),
                  Line(f"{mode}, frontier", *places(ends), 2 * style + 1)]  # fmt: skip
        best += [[mode, row["method"], number(row["score"]), f"{row['speedup']:.2f}×"] for row in ends]
    axes = Axes("speed-up over vanilla", metric, from_zero=False)
    plot = line_plot(lines, axes, f"{metric} on dev against the speed-up over vanilla, by little model", "frontier")
    return Figure("What no other pair beats in both", plot, Table(["little model", "", metric, "speed-up"], best, 2))
