"""The demo: a small bench of our own methods on the package's sample, one table, and the report."""

import sys
from pathlib import Path
from typing import Any

from spec2seq.errors import Spec2SeqError
from spec2seq.evaluation.bench.recipe import Models, Recipe, Variant
from spec2seq.evaluation.bench.run import run_bench
from spec2seq.evaluation.report import write_report
from spec2seq.evaluation.sample import committed_sample, read_pairs
from spec2seq.evaluation.tables import measured, method_label
from spec2seq.files import write_json

METHODS = ("greedy", "assisted", "bild", "lookup")
BLOCKS = Variant("specdec", {"block_size": 3})  # where a block drafter lies beside the verifier
LINES, ROUNDS = 16, 3  # timed; so few that the demo ends within minutes on a slow machine too


def run_demo(models: Path, sample: Path | None, out: Path, threads: int | None = None, rounds: int = ROUNDS) -> Path:
    """Translate the sample with every method; print one table and the report's path; return the path.

    Args:
        models: folder of the verifier, with the little model in little/ and perhaps a block drafter in drafter/.
        sample: source TAB reference lines; None takes the sample that comes with the package.
        out: folder for results.json, report.html and report.md.
        threads: of PyTorch; None leaves them as they are.
        rounds: of the timing.

    Raises UsageError or Spec2SeqError for wrong input.
    """
    pairs = committed_sample() if sample is None else read_pairs(sample)
    file = "ende-sample.tsv" if sample is None else Path(sample).name
    if not (Path(models) / "config.json").is_file():
        raise Spec2SeqError(f"{models}: no model here: config.json is missing")
    blocks = (Path(models) / "drafter" / "config.json").is_file()
    recipe = Recipe(
        METHODS, (BLOCKS,) if blocks else (), peers=(), dtype=("float32",), batch_sizes=(1,), lines=LINES,
        rounds=rounds, side_rounds=rounds, quality_lines=None, threads=threads, memory=False,
    )  # fmt: skip
    results = run_bench(Models(str(models)), pairs, file, recipe, "spec2seq demo")
    write_json(Path(out) / "results.json", results)
    page, _ = write_report(Path(out))
    _print(results, page)
    return page


def _print(results: dict[str, Any], report: Path) -> None:
    """The table and the report's path, on standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    data = results["data"]
    rounds = results["recipe"]["rounds"]
    title = f"{data['lines']} lines, {data['timed_lines']} of them timed at batch size 1 in {rounds} rounds"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    heads = ("method", "seconds", "ms per\ntoken", "tokens\nper call", "BLEU", "chrF", "same as\ngreedy")
    for name in heads:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    table.add_column("speed-up\n(quartiles)", justify="right", no_wrap=True)
    for row in measured(results["rows"]):
        speed = row["speedup_vs_greedy"]
        table.add_row(
            method_label(row), f"{row['seconds']['median']:.2f}",
            f"{row['ms_per_token']:.2f}", f"{row['tokens_per_verifier_call']:.2f}", f"{row['bleu']:.1f}",
            f"{row['chrf']:.1f}", f"{row['identical_to_greedy']:.1%}",
            f"{speed['median']:.2f}× {speed['low']:.2f}–{speed['high']:.2f}",
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    console.print(f"report: {report}", soft_wrap=True, markup=False, highlight=False)
