"""The demo: a sample of real text translated in four ways, one table, and a page that shows who wrote each token."""

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spec2seq.errors import Spec2SeqError
from spec2seq.evaluation.files import write_json
from spec2seq.evaluation.manifest import manifest
from spec2seq.evaluation.metrics import paired_speedup, quality, share_identical
from spec2seq.evaluation.peers import Run, Workload
from spec2seq.evaluation.peers.ours import Ours
from spec2seq.evaluation.progress import progress
from spec2seq.evaluation.report import write_report
from spec2seq.evaluation.sample import Pair, committed_sample, read_pairs, stratified_indices
from spec2seq.evaluation.tables import method_label
from spec2seq.evaluation.timing import Timings, interleave, set_threads

Method = tuple[str, dict[str, Any]]
METHODS: tuple[Method, ...] = (("greedy", {}), ("assisted", {}), ("bild", {}), ("lookup", {}))
BLOCKS: Method = ("specdec", {"block_size": 3})  # where a block drafter lies beside the verifier; comes after greedy
TIMED_LINES = 16
TIMED_SECONDS = 60.0  # for all rounds together, so that the demo ends within minutes on a slow machine too
ROUNDS = (3, 7)
SENTENCES = 10
BINS = 6


def run_demo(
    models: Path, sample: Path | None, out: Path, threads: int | None = None, rounds: int | None = None
) -> Path:
    """Translate the sample with every method; print one table and the report's path; return the path.

    Args:
        models: folder of the verifier, with the little model in little/ and perhaps a block drafter in drafter/.
        sample: source TAB reference lines; None takes the sample that comes with the package.
        out: folder for results.json and report.html.
        threads: of PyTorch; None leaves them as they are.
        rounds: of the timing; None takes as many as fit, from 3 to 7.

    Raises UsageError or Spec2SeqError for wrong input.
    """
    pairs = committed_sample() if sample is None else read_pairs(sample)
    file = "ende-sample.tsv" if sample is None else Path(sample).name
    results = measure(Path(models), pairs, file, set_threads(threads), rounds)
    write_json(Path(out) / "results.json", results)
    report = write_report(Path(out) / "results.json", Path(out) / "report.html")
    _print(results, report)
    return report


def measure(models: Path, pairs: Sequence[Pair], file: str, threads: int, rounds: int | None = None) -> dict[str, Any]:
    """What results.json holds."""
    if not (models / "config.json").is_file():
        raise Spec2SeqError(f"{models}: no model here: config.json is missing")
    quality(["a"], ["a"])  # a missing package is said before the work, not after
    ours, sources = _load(models, pairs, threads)
    methods = METHODS if ours.blocks is None else (METHODS[0], BLOCKS, *METHODS[1:])
    runs = []
    with progress("translating", len(methods)) as advance:
        for method in methods:
            runs.append(ours.translate(*method, sources))
            advance()
    timed = stratified_indices(pairs, TIMED_LINES)
    some = [sources[index] for index in timed]
    warm = sum(sum(ours.run(*method, sources=some).line_seconds) for method in methods)
    rounds = rounds or max(ROUNDS[0], min(ROUNDS[1], int(TIMED_SECONDS / warm)))
    with progress("timing", len(methods) * len(timed) * rounds) as advance:
        timings, line_seconds = time_methods(ours, methods, some, rounds, advance)
    rows = _rows(ours, methods, runs, pairs, timings, line_seconds, timed)
    return {
        "manifest": manifest("spec2seq demo", ours.workload.folders(), "float32", threads),
        "data": {"file": file, "lines": len(pairs), "timed_lines": len(timed), "rounds": rounds},
        "rows": rows,
        "latency": _latency(rows, [len(runs[0].sequences[index]) for index in timed], line_seconds),
        "acceptance": _acceptance(rows, runs),
        "sentences": _sentences(ours, runs[1], pairs),
    }


def _load(models: Path, pairs: Sequence[Pair], threads: int) -> tuple[Ours, list[list[int]]]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    ours = Ours(Workload(models, [], 1, threads))
    sources = [ours.tokenizer(pair.source, verbose=False)["input_ids"] for pair in pairs]
    ours.workload = Workload(models, sources, ours.verifier.max_new_tokens(), threads)
    return ours, sources


def time_methods(
    ours: Ours, methods: Sequence[Method], sources: list[list[int]], rounds: int, advance: Callable[[], Any]
) -> tuple[Timings, dict[str, list[float]]]:
    """Interleaved seconds of each method, and for each line the median of its seconds, by the methods' labels."""
    found: dict[str, list[list[float]]] = {_name(method): [] for method in methods}

    def call(method: Method) -> Callable[[], None]:
        return lambda: found[_name(method)].append(ours.run(*method, sources=sources, after=advance).line_seconds)

    timings = interleave({_name(method): call(method) for method in methods}, rounds, warmup=0)
    lines = {name: [statistics.median(line) for line in zip(*rounds_, strict=True)] for name, rounds_ in found.items()}
    return timings, lines


def _rows(
    ours: Ours, methods: Sequence[Method], runs: Sequence[Run], pairs: Sequence[Pair], timings: Timings,
    line_seconds: dict[str, list[float]], timed: Sequence[int],
) -> list[dict[str, Any]]:  # fmt: skip
    rows, references, greedy = [], [pair.reference for pair in pairs], _name(methods[0])
    for (method, parameters), run in zip(methods, runs, strict=True):
        name = _name((method, parameters))
        texts = [ours.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in run.sequences]
        tokens = sum(len(run.sequences[index]) for index in timed)
        rows.append({
            "engine": "spec2seq", "method": method, "parameters": parameters, "batch_size": 1, "dtype": "float32",
            "seconds": timings.spread(name).as_dict(),
            "ms_per_token": 1000 * timings.median(name) / tokens,
            "tokens_per_verifier_call": run.new_tokens / run.verifier_calls,
            "identical_to_greedy": share_identical(run.sequences, runs[0].sequences),
            "speedup": timings.speedup(name, greedy).as_dict(),
            "speedup_by_line": paired_speedup(line_seconds[name], line_seconds[greedy]).as_dict(),
            **quality(texts, references).as_dict(),
        })  # fmt: skip
    return rows


def _latency(
    rows: Sequence[dict[str, Any]], lengths: Sequence[int], line_seconds: dict[str, list[float]]
) -> dict[str, Any]:
    """Median milliseconds of a line in bins of equally many lines by the length of the greedy output."""
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    count = min(BINS, len(order))
    bins = [order[number * len(order) // count : (number + 1) * len(order) // count] for number in range(count)]

    def medians(seconds: Sequence[float]) -> list[float]:
        return [1000 * statistics.median(seconds[place] for place in part) for part in bins]

    return {
        "bins": [[lengths[part[0]], lengths[part[-1]], len(part)] for part in bins],
        "mean_tokens": [statistics.mean(lengths[place] for place in part) for part in bins],
        "milliseconds": {_label(row): medians(line_seconds[_label(row)]) for row in rows},
    }


def _acceptance(rows: Sequence[dict[str, Any]], runs: Sequence[Run]) -> dict[str, dict[str, list[int]]]:
    """How often each position of a draft was drafted and accepted, of the methods that drafted at all."""
    counts = {_label(row): run.extra["stats"] for row, run in zip(rows, runs, strict=True)}
    return {
        name: {"drafted_at": stats["drafted_at"], "accepted_at": _padded(stats["accepted_at"], stats["drafted_at"])}
        for name, stats in counts.items()
        if stats["drafted"]
    }


def _padded(counts: list[int], like: list[int]) -> list[int]:
    return counts + [0] * (len(like) - len(counts))


def _name(method: Method) -> str:
    return _label({"engine": "spec2seq", "method": method[0], "parameters": method[1]})


def _label(row: dict[str, Any]) -> str:
    return method_label(row | {"again": False})


def _sentences(ours: Ours, run: Run, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Lines of all lengths with the text of each token and which model wrote it."""
    special = set(ours.tokenizer.all_special_ids)
    made = []
    for index in stratified_indices(pairs, SENTENCES):
        tokens, trace = run.sequences[index], run.extra["traces"][index]
        shown = [(token, by) for token, by in zip(tokens, trace, strict=True) if token not in special]
        pieces = token_texts(ours.tokenizer, [token for token, _ in shown])
        made.append({
            "source": pairs[index].source, "reference": pairs[index].reference, "new_tokens": len(tokens),
            "verifier_calls": run.extra["calls"][index],
            "tokens": [{"text": text, "by": by} for text, (_, by) in zip(pieces, shown, strict=True)],
        })  # fmt: skip
    return made


def token_texts(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text; joined they are the text. A character that several tokens spell (its UTF-8
    bytes) belongs to the last of them."""
    texts, before = [], ""
    for count in range(1, len(tokens) + 1):
        text = tokenizer.decode(list(tokens[:count]))
        whole = text.startswith(before) and (not text.endswith("\ufffd") or count == len(tokens))
        texts.append(text[len(before) :] if whole else "")
        before = text if whole else before
    return texts


def _print(results: dict[str, Any], report: Path) -> None:
    """The table and the report's path, on standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    data = results["data"]
    title = f"{data['lines']} lines at batch size 1, {data['timed_lines']} of them timed in {data['rounds']} rounds"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    heads = ("method", "seconds", "ms per\ntoken", "tokens\nper call", "BLEU", "chrF", "same as\ngreedy")
    for name in heads:
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    table.add_column("speed-up\n(quartiles)", justify="right", no_wrap=True)
    for row in results["rows"]:
        speed = row["speedup"]
        table.add_row(
            _label(row), f"{row['seconds']['median']:.2f}",
            f"{row['ms_per_token']:.2f}", f"{row['tokens_per_verifier_call']:.2f}", f"{row['bleu']:.1f}",
            f"{row['chrf']:.1f}", f"{row['identical_to_greedy']:.1%}",
            f"{speed['median']:.2f}× {speed['low']:.2f}–{speed['high']:.2f}",
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    console.print(f"report: {report}", soft_wrap=True, markup=False, highlight=False)
