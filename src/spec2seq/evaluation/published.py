"""What is published of BiLD: its main table (Kim et al. 2023) and the reproduction's figures (PopoDev/BiLD)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spec2seq.config import check_choice
from spec2seq.errors import UsageError
from spec2seq.evaluation.document import markdown_table as table
from spec2seq.evaluation.tables import number

GOALS = ("no-drop", "one-point")  # what a pair of thresholds was chosen for: no loss of score, or about one point


@dataclass(frozen=True)
class Point:
    """One pair of thresholds; scores are BLEU or ROUGE-Lsum of the validation split, each with its speed-up."""

    task: str
    mode: str
    goal: str
    rollback: float
    fallback: float
    original: tuple[float, float]
    reproduction: tuple[float, float]


# The reproduction's scores are its README's, its speed-ups what the README says last; one T4.
POINTS = tuple(
    Point(task, mode, goal, *values)
    for task, rows in {
        "iwslt2017-de-en": [
            (2, 0.6, (40.33, 1.43), (40.33, 1.46)), (3, 0.5, (39.44, 1.58), (39.44, 1.61)),
            (3, 0.9, (40.24, 1.62), (40.09, 1.52)), (4, 0.6, (39.13, 1.78), (39.15, 1.73)),
        ],
        "wmt14-de-en": [
            (2, 0.6, (31.28, 1.34), (31.65, 1.27)), (3, 0.5, (30.47, 1.43), (30.83, 1.34)),
            (2, 0.8, (31.26, 1.47), (31.65, 1.37)), (5, 0.6, (30.33, 1.70), (30.54, 1.65)),
        ],
        "xsum": [
            (3, 0.5, (35.12, 1.48), (35.12, 1.40)), (5, 0.3, (34.02, 1.72), (34.02, 1.54)),
            (2, 0.6, (35.05, 1.50), (34.96, 1.41)), (5, 0.4, (33.95, 1.80), (33.96, 1.73)),
        ],
        "cnn_dailymail": [
            (3, 0.4, (41.44, 1.71), (41.44, 1.54)), (6, 0.2, (40.57, 2.05), (40.56, 1.87)),
            (3, 0.3, (41.52, 1.85), (41.33, 1.48)), (6, 0.2, (40.96, 2.12), (40.79, 1.67)),
        ],
    }.items()
    for (mode, goal), values in zip([(m, g) for m in ("unaligned", "aligned") for g in GOALS], rows, strict=True)
)  # fmt: skip


def point(task: str, mode: str, goal: str) -> Point:
    """Raises UsageError where nothing is published."""
    check_choice("preset", goal, GOALS)
    found = [one for one in POINTS if (one.task, one.mode, one.goal) == (task, mode, goal)]
    if not found:
        tasks = ", ".join(dict.fromkeys(one.task for one in POINTS))
        raise UsageError(f"nothing is published for {task}, {mode}; allowed: {tasks}, each unaligned and aligned")
    return found[0]


def nearest(task: str, mode: str, fallback: float | None, rollback: float | None) -> Point | None:
    """The published point with just these thresholds."""
    wanted = (task, mode, fallback, rollback)
    return next((one for one in POINTS if (one.task, one.mode, one.fallback, one.rollback) == wanted), None)


def beside_published(rows: Sequence[dict[str, Any]], known: Point | None) -> str:
    """Rows of `runs.results` as a Markdown table: score and speed-up, original | reproduction | ours."""
    lines = []
    for row in rows:
        of_known = known is not None and row["method"] != "vanilla"
        theirs = [f"{number(a)}, {b:.2f}×" for a, b in (known.original, known.reproduction)] if of_known else ["–", "–"]
        stats = row["stats"]
        lines.append([
            row["method"], *theirs, f"{number(row['score'])}, {row['speedup']:.2f}×",
            number(stats["fallback_percentage"]), number(stats["rollback_percentage"]),
            number(stats["tokens_per_verifier_call"]), number(stats["unverified"], 0),
        ])  # fmt: skip
    head = [
        "",
        "original",
        "reproduction",
        "ours",
        "fallback %",
        "rollback %",
        "tokens per verifier call",
        "unverified",
    ]
    return "\n".join(table(head, lines))
