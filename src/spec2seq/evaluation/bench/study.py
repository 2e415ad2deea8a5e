"""What a token costs against the length of the source and the batch size, and where drafting stops paying.

A fixed draft shows where it pays; beside it stands how much the adaptive rule of the same method drafts there.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from spec2seq.errors import Spec2SeqError
from spec2seq.evaluation.bench.engines import Engines, make_workload, running
from spec2seq.evaluation.bench.recipe import Contender, Models, Recipe, our_dtypes
from spec2seq.evaluation.manifest import manifest
from spec2seq.evaluation.progress import progress
from spec2seq.evaluation.sample import Pair, stratified, stratified_indices
from spec2seq.evaluation.timing import interleave

NEAR = 0.1  # a source may have so much more or fewer words than asked for
DRAFTS = 0.25  # tokens drafted a pass; below it are only the probes, by which the rule notices a change


def run_study(models: Models, pairs: Sequence[Pair], file: str, recipe: Recipe, command: str) -> dict[str, Any]:
    """What study.json holds. Raises Spec2SeqError where our greedy cannot run."""
    grid = recipe.study
    sample = stratified(pairs, max(recipe.lines, *grid.batch_sizes))
    by_words = {words: joined([pair.source for pair in pairs], words, grid.lines) for words in grid.words}
    texts = [pair.source for pair in sample] + [text for found in by_words.values() for text in found]
    workload, _ = make_workload(models, texts, recipe, file)
    methods = []
    for dtype in our_dtypes(recipe):
        methods.append(Contender("spec2seq", "greedy", dtype=dtype))
        for variant in grid.fixed:
            methods += [Contender("spec2seq", variant.method, given, dtype) for given in (variant.parameters, {})]
    cells: dict[str, list[dict[str, Any]]] = {"lengths": [], "batches": []}
    with running(workload, recipe, methods) as engines:
        present, missing = _present(engines, methods)
        total = len(present) * (grid.rounds + 2) * (len(by_words) + len(grid.batch_sizes))
        with progress("studying", total) as advance:
            start = len(sample)
            for words, found in by_words.items():
                lines = list(range(start, start + len(found)))
                start += len(found)
                cell = {"words": words, "lines": len(found), "batch_size": 1}
                if found:
                    tokens = sum(len(workload.sources[line]) for line in lines) / len(lines)
                    cell |= {"source_tokens": tokens, "rows": _cell(engines, present, lines, 1, grid.rounds, advance)}
                cells["lengths"].append(cell)
            for size in grid.batch_sizes:
                lines = stratified_indices(sample, max(recipe.lines, size))
                rows = _cell(engines, present, lines, size, grid.rounds, advance)
                cells["batches"].append({"batch_size": size, "lines": len(lines), "rows": rows})
    return {
        "manifest": manifest(command, workload.folders(), recipe.dtype[0], workload.threads),
        "data": {"file": file, "timed_lines": recipe.lines, "rounds": grid.rounds,
                 "max_new_tokens": workload.max_new_tokens},
        "grid": asdict(grid),
        "missing": missing,
        **cells,
        "break_even": [c.identity() | break_even(cells, c) for c in present if c.parameters],
    }  # fmt: skip


def joined(texts: Sequence[str], words: int, count: int) -> list[str]:
    """`count` sources of about so many words, spread over the texts: runs of consecutive texts joined by a space, a
    single one where that is long enough. Fewer where there are not so many."""
    found = []
    for start in range(len(texts)):
        run: list[str] = []
        for text in texts[start:]:
            run += text.split()
            if len(run) >= words * (1 - NEAR):
                break
        if abs(len(run) - words) <= max(1, words * NEAR):
            found.append(" ".join(run))
    step = max(1, len(found) // count)
    return found[::step][:count]


def _present(engines: Engines, methods: Sequence[Contender]) -> tuple[list[Contender], dict[str, str]]:
    """The methods that run, and why the others do not."""
    present, missing = [], {}
    for method in methods:
        try:
            engines.ask(method, "time", [0])
            present.append(method)
        except Spec2SeqError as error:
            if method.method == "greedy":
                raise
            missing[method.name] = str(error)
    return present, missing


def _cell(
    engines: Engines, methods: Sequence[Contender], lines: list[int], size: int, rounds: int, advance: Callable[[], Any]
) -> list[dict[str, Any]]:
    """One length or batch size: a row for each method. The first pass is not timed: the rules learn in it."""
    answers: dict[str, list[dict[str, Any]]] = {c.name: [] for c in methods}

    def call(c: Contender) -> Callable[[], None]:
        return lambda: answers[c.name].append(engines.ask(c, "time", lines, size))

    def after() -> None:
        advance()
        engines.settle()

    timings = interleave({c.name: call(c) for c in methods}, rounds, warmup=1, after=after)
    greedy = {c.dtype: c.name for c in methods if c.method == "greedy"}
    rows = []
    for c in methods:
        stats = engines.ask(c, "run", lines, size)["extra"]["stats"]
        advance()
        rows.append(c.identity() | {
            "ms_per_token": 1000 * timings.median(c.name) / answers[c.name][-1]["new_tokens"],
            "speedup_vs_greedy": timings.speedup(c.name, greedy[c.dtype]).as_dict(),
            "tokens_per_verifier_call": stats["tokens_per_verifier_call"],
            "drafted_per_call": stats["drafted"] / stats["verifier_calls"],
        })  # fmt: skip
    return rows


def break_even(cells: dict[str, list[dict[str, Any]]], fixed: Contender) -> dict[str, Any]:
    """The batch sizes and lengths in words where a fixed draft pays (its median ratio to greedy is above 1), and those
    where the adaptive rule of the same method drafts."""

    def where(kind: str, key: str, parameters: dict[str, Any], holds: Callable[[dict[str, Any]], bool]) -> list[int]:
        wanted = (fixed.method, parameters, fixed.dtype)
        return [
            cell[key] for cell in cells[kind] for row in cell.get("rows", [])
            if (row["method"], row["parameters"], row["dtype"]) == wanted and holds(row)
        ]  # fmt: skip

    def pays(row: dict[str, Any]) -> bool:
        return row["speedup_vs_greedy"]["median"] > 1

    def drafts(row: dict[str, Any]) -> bool:
        return row["drafted_per_call"] >= DRAFTS

    return {
        "pays_at_batch_sizes": where("batches", "batch_size", fixed.parameters, pays),
        "rule_drafts_at_batch_sizes": where("batches", "batch_size", {}, drafts),
        "pays_at_words": where("lengths", "words", fixed.parameters, pays),
        "rule_drafts_at_words": where("lengths", "words", {}, drafts),
    }
