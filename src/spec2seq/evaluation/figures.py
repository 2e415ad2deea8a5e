"""The figures of the report: each a plot and the same in numbers."""

from collections.abc import Sequence
from typing import Any

from spec2seq.evaluation.document import Block, Figure, Heading, Table, Text
from spec2seq.evaluation.plots import Axes, Line, bar_plot, line_plot, point_plot
from spec2seq.evaluation.sweeps import unbeaten
from spec2seq.evaluation.tables import (
    ENGINES,
    PHASES,
    SCORES,
    main_score,
    measured,
    method_label,
    number,
    phase_table,
    ratio,
    row_label,
    throughput_table,
)

RARE = 20  # positions that were drafted fewer times are not drawn


def frontier(results: dict[str, Any]) -> Figure:
    """Quality against speed at batch size 1; those that nothing beats in both are marked."""
    score = main_score(results["rows"])
    rows = [row for row in measured(results["rows"])
            if row["batch_size"] == 1 and not row["again"] and row.get(score) is not None]  # fmt: skip
    rows.sort(key=lambda row: list(ENGINES).index(row["engine"]))  # as their points are numbered
    speeds = [row["speedup_vs_greedy"]["median"] for row in rows]
    points = []
    for style, (engine, name) in enumerate(ENGINES.items()):
        mine = [place for place, row in enumerate(rows) if row["engine"] == engine]
        if mine:
            points.append(Line(name, [speeds[p] for p in mine], [rows[p][score] for p in mine], style))
    best = unbeaten([(speed, row[score]) for speed, row in zip(speeds, rows, strict=True)])
    name = SCORES[score]
    table = Table(
        ["number and row", "against our greedy", name, "on the frontier"],
        [[f"{place}. {row_label(row, results['recipe']['dtype'][0])}", ratio(row["speedup_vs_greedy"]),
          number(row[score], 1), "yes" if on else "–"]
         for place, (row, on) in enumerate(zip(rows, best, strict=True), 1)],
    )  # fmt: skip
    axes = Axes("times as fast as our greedy, batch size 1", name)
    plot = point_plot(points, axes, f"{name} against speed, a numbered point for each row of the table", "frontier")
    return Figure("Speed and quality", plot, table, "Numbers name the rows; each engine has its own marker.")


def _shown(rows: Sequence[dict[str, Any]], base: str) -> list[dict[str, Any]]:
    """What the plots draw, a tenth of a page being small: our presets and the greedy of each engine."""
    return [row for row in rows if not row.get("again") and not (row["parameters"] and row["engine"] != "spec2seq")
            and (row["engine"] == "spec2seq" or (row["method"] == "greedy" and row["dtype"] == base))]  # fmt: skip


def _styles(results: dict[str, Any]) -> dict[str, int]:
    """The same look for the same row in every plot."""
    base = results["recipe"]["dtype"][0]
    rows = [row for row in results["rows"] if row["batch_size"] == 1]
    return {label: n for n, label in enumerate(dict.fromkeys(row_label(row, base) for row in rows))}


def latency(results: dict[str, Any]) -> Figure:
    """Milliseconds of a line at batch size 1 against the length of the greedy output."""
    found, base, styles = results["latency"], results["recipe"]["dtype"][0], _styles(results)
    rows = found["milliseconds"]
    lines = [
        Line(row_label(row, base), found["mean_tokens"], row["values"], styles[row_label(row, base)])
        for row in _shown(rows, base)
    ]
    table = Table(
        ["row", *(f"{low}–{high} tokens ({count} lines), ms" for low, high, count in found["bins"])],
        [[row_label(row, base), *(number(value, 1) for value in row["values"])] for row in rows],
    )
    axes = Axes("tokens of the greedy output", "ms for a line")
    plot = line_plot(lines, axes, "Median milliseconds for a line against the length of its output", "latency")
    return Figure(
        "Time for a line against its length", plot, table, "The plot leaves out what only the table has room for."
    )


def acceptance(results: dict[str, Any]) -> list[Block]:
    """Share of drafted tokens that stood, by position in the draft."""
    found, base, styles = results["acceptance"], results["recipe"]["dtype"][0], _styles(results)
    lines, longest = [], 0
    for counts in found:
        shown = [place for place, drafted in enumerate(counts["drafted_at"]) if drafted >= RARE]
        shares = [counts["accepted_at"][place] / counts["drafted_at"][place] for place in shown]
        label = row_label(counts, base)
        lines.append(Line(label, [place + 1 for place in shown], shares, styles[label]))
        longest = max(longest, len(counts["drafted_at"]))
    if not lines:
        return []
    head = ["position", *(f"{row_label(counts, base)}: accepted of drafted" for counts in found)]
    rows = [[place + 1, *(_accepted(counts, place) for counts in found)] for place in range(longest)]
    axes = Axes("position in the draft", "share accepted", top=1.0)
    plot = line_plot(lines, axes, "Share of the tokens drafted at each position that were accepted", "acceptance")
    note = f"Positions that were drafted fewer than {RARE} times are in the table only."
    return [Figure("How many drafted tokens stand", plot, Table(head, rows), note)]


def _accepted(counts: dict[str, Any], place: int) -> str:
    if place >= len(counts["drafted_at"]):
        return "–"
    drafted, accepted = counts["drafted_at"][place], counts["accepted_at"][place]
    return f"{accepted} of {drafted} ({accepted / drafted:.0%})"


def phases(results: dict[str, Any]) -> list[Block]:
    """Share of each phase in the time, of a separate profile run."""
    rows = results["phases_ms_per_token"]
    if not rows:
        return []
    parts = {name: [row.get(key, 0.0) / row["all"] for row in rows] for key, name in PHASES.items()}
    axes = Axes("share of the time", "")
    plot = bar_plot(
        [row_label(row, results["recipe"]["dtype"][0]) for row in rows],
        parts,
        axes,
        "Shares of the time by phase, a bar a method",
        "phases",
    )
    return [
        Figure(
            "Where the time goes",
            plot,
            phase_table(rows),
            "Of one pass of each method at batch size 1, not in turn with the others: shares only.",
        )
    ]


def throughput(results: dict[str, Any]) -> list[Block]:
    """Tokens per second against the batch size."""
    base, styles = results["recipe"]["dtype"][0], _styles(results)
    rows = [row for row in results["rows"] if not row["again"]]
    if len(results["recipe"]["batch_sizes"]) < 2:
        return []
    series: dict[str, list[dict[str, Any]]] = {}
    for row in _shown(measured(rows), base):
        series.setdefault(row_label(row, base), []).append(row)
    lines = [
        Line(label, [row["batch_size"] for row in found], [row["tokens_per_second"] for row in found], styles[label])
        for label, found in series.items()
    ]
    axes = Axes("batch size", "tokens per second", log_x=True)
    plot = line_plot(lines, axes, "Tokens per second against the batch size", "throughput")
    return [Figure("Throughput against the batch size", plot, throughput_table(rows))]


def costs(found: dict[str, Any]) -> Figure:
    """What a verifier pass costs by the tokens that each row is fed."""
    by_size = found["verifier_ms"]
    lines = [
        Line(f"batch size {size}", [int(length) for length in curve], list(curve.values()), style)
        for style, (size, curve) in enumerate(by_size.items())
    ]
    lengths = list(next(iter(by_size.values())))
    table = Table(
        ["tokens a row", *(f"batch {size}, ms (of one token)" for size in by_size)],
        [[length, *(f"{curve[length]:.2f} ({curve[length] / curve['1']:.2f})" for curve in by_size.values())]
         for length in lengths],
    )  # fmt: skip
    plot = line_plot(lines, Axes("tokens a row", "ms for a pass"), "Milliseconds of a pass by the tokens fed", "costs")
    return Figure("What a verifier pass costs", plot, table)


def study(found: dict[str, Any]) -> list[Block]:
    """Cost per token against source length and batch size, and where each method stops paying."""
    data = found["data"]
    text = (
        f"{found['grid']['lines']} sources a length (those longer than a sentence are consecutive sentences joined) at "
        f"batch size 1, and {data['timed_lines']} lines at every batch size, or as many as a batch has; "
        f"{data['rounds']} interleaved rounds. "
        f"At most {data['max_new_tokens']} new tokens: long sources end there. A draft of fixed length shows where "
        "drafting pays; beside it stands how many tokens a pass the adaptive rule of the same method drafts there. "
        "Where it stays near 0, it has switched itself off. A length without sources in the file is left out."
    )
    base, sweeps = found["manifest"]["dtype"], []
    for dtype in dict.fromkeys(row["dtype"] for cell in found["batches"] for row in cell["rows"]):
        sweeps += [
            _sweep(found["lengths"], dtype, "words", "Cost of a token against the length of the source"),
            _sweep(found["batches"], dtype, "batch_size", "Cost of a token against the batch size"),
        ]
    return [Heading("Length and batch size"), Text(text), *sweeps, *_break_even(found["break_even"], base)]


def _sweep(cells: Sequence[dict[str, Any]], dtype: str, key: str, title: str) -> Figure:
    cells = [
        cell | {"rows": [row for row in cell["rows"] if row["dtype"] == dtype]} for cell in cells if cell.get("rows")
    ]
    title, x = f"{title}, {dtype}", {"words": "words of the source", "batch_size": "batch size"}[key]
    labels = [method_label(row) for row in cells[0]["rows"]]
    values = [cell[key] for cell in cells]
    lines = [
        Line(label, values, [cell["rows"][place]["ms_per_token"] for cell in cells], place)
        for place, label in enumerate(labels)
    ]
    rows = []
    for place, label in enumerate(labels):
        cells_of = [cell["rows"][place] for cell in cells]
        rows.append([label, *(
            f"{row['ms_per_token']:.2f} ms, {ratio(row['speedup_vs_greedy'])}, drafts {row['drafted_per_call']:.1f}"
            for row in cells_of
        )])  # fmt: skip
    plot = line_plot(lines, Axes(x, "ms per token", log_x=True), title, f"{key.replace('_', '-')}-{dtype}")
    return Figure(
        title, plot, Table(["method", *(f"{value} {'words' if key == 'words' else 'rows'}" for value in values)], rows)
    )


def _break_even(found: Sequence[dict[str, Any]], base: str) -> list[Block]:
    rows = []
    for row in found:
        for what, key in (("batch sizes", "at_batch_sizes"), ("words", "at_words")):
            pays, drafts = row[f"pays_{key}"], row[f"rule_drafts_{key}"]
            rows.append([row_label(row, base), what, _listed(pays), _listed(drafts)])
    head = ["method", "over", "a fixed draft pays at", "the adaptive rule drafts at"]
    return [Heading("Where drafting stops paying", 3), Table(head, rows, words=True)]


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values)) or "none"
