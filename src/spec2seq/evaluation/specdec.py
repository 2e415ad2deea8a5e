"""SpecDec on real lines, as its paper reports it: (β, τ) chosen on dev, everything else measured on test.

python -m spec2seq.evaluation.specdec --out docs/results    with ende.dev.tsv and ende.test.tsv in $SPEC2SEQ_DATA
"""

import argparse
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spec2seq.errors import UsageError
from spec2seq.evaluation.command import run_main
from spec2seq.evaluation.costs import pass_seconds
from spec2seq.evaluation.manifest import manifest
from spec2seq.evaluation.memory import fresh_peaks, tensor_bytes
from spec2seq.evaluation.metrics import quality, share_identical
from spec2seq.evaluation.peers import Job, Run, Workload
from spec2seq.evaluation.peers.ours import Ours
from spec2seq.evaluation.progress import progress
from spec2seq.evaluation.sample import Pair, read_pairs, stratified_indices
from spec2seq.evaluation.specdec_page import specdec_page
from spec2seq.evaluation.timing import interleave, set_threads
from spec2seq.files import write_json, write_text

GRID = tuple((beta, tau) for beta in (2, 3, 5) for tau in (0.5, 1.0, 2.0, 3.0))
PAPER = (5, 3.0)  # the original scripts' values
MARGIN = 0.3  # BLEU below beam 5 that a relaxed setting may cost on dev
WORD_BINS = ((1, 9), (10, 19), (20, 29), (30, 1000))
BATCH_SIZE = 16
MEMORY_BATCHES = (1, 4, 8, 16, 32)


@dataclass(frozen=True)
class Study:
    """What is measured on, and how much of it."""

    models: Path
    dev: Sequence[Pair]
    test: Sequence[Pair]
    timed_lines: int
    rounds: int
    threads: int


def study(asked: Study, command: str) -> dict[str, Any]:
    """Measure; returns what specdec.json holds. Raises UsageError where no block drafter lies beside the model."""
    workload = Workload(asked.models, [], 1, asked.threads)
    if workload.drafter is None:
        raise UsageError(f"{asked.models / 'drafter'}: no block drafter here; train one (recipes/ende-drafter.yaml)")
    ours = Ours(workload)
    ours.workload = Workload(asked.models, [], ours.verifier.max_new_tokens(), asked.threads)
    total = len(GRID) + 6
    with progress("decoding", total) as advance:
        dev, chosen = choose_on_dev(ours, asked.dev, advance)
        rows, runs = on_test(ours, asked.test, chosen, advance)
    timing = time_on_test(ours, asked, chosen)
    size = ours.blocks.block_size
    return {
        "manifest": manifest(command, ours.workload.folders(), "float32", asked.threads),
        "data": {"dev_lines": len(asked.dev), "test_lines": len(asked.test), "timed_lines": asked.timed_lines,
                 "rounds": asked.rounds, "batch_size": BATCH_SIZE, "block_size": size},
        "dev": dev,
        "chosen": chosen,
        "test": rows,
        "by_words": {row["method"]: by_words(run, asked.test) for row, run in zip(rows, runs, strict=True)},
        "timing": timing,
        "pass_ms": {str(n): 1000 * s for n, s in pass_seconds(ours.verifier.model, 1, (1, 2, 3, 4, 5, 7)).items()},
        "memory": {"tensor_bytes": tensor_bytes(ours), "peak_mb": peaks(ours)},
    }  # fmt: skip


def choose_on_dev(ours: Ours, dev: Sequence[Pair], advance: Any) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Every (β, τ) of the grid, and the one with the most tokens per verifier call among those whose BLEU is at most
    `MARGIN` below that of beam 5; None if there is none."""
    sources = encode(ours, dev)
    beam = score(ours, decode(ours, "beam", {}, sources).sequences, dev)["bleu"]
    advance()
    rows = []
    for beta, tau in GRID:
        found = decode(ours, "specdec", {"beta": beta, "tau": tau, "block_size": ours.blocks.block_size}, sources)
        rows.append({"beta": beta, "tau": tau, "bleu_minus_beam": score(ours, found.sequences, dev)["bleu"] - beam,
                     "tokens_per_verifier_call": found.new_tokens / found.verifier_calls})  # fmt: skip
        advance()
    near = [row for row in rows if row["bleu_minus_beam"] >= -MARGIN]
    best = max(near, key=lambda row: row["tokens_per_verifier_call"], default=None)
    return rows, best and {"beta": best["beta"], "tau": best["tau"]}


def settings(ours: Ours, chosen: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The SpecDec rows of every table, by label."""
    size = {"block_size": ours.blocks.block_size}
    rows = {"lossless": size, "paper's": size | dict(zip(("beta", "tau"), PAPER, strict=True))}
    return rows | ({"chosen on dev": size | chosen} if chosen else {})


def on_test(ours: Ours, test: Sequence[Pair], chosen: Any, advance: Any) -> tuple[list[dict[str, Any]], list[Run]]:
    """Quality and counts of all lines: greedy, beam 5, and SpecDec's settings with whole blocks."""
    sources = encode(ours, test)
    greedy = decode(ours, "greedy", {}, sources)
    advance()
    beam = Run(decode(ours, "beam", {}, sources).sequences, [])  # without its calls
    advance()
    runs = {"greedy": greedy, "beam 5": beam}
    parameters = settings(ours, chosen)
    for name, values in parameters.items():
        runs[f"SpecDec, {name}"] = decode(ours, "specdec", values, sources)
        advance()
    rows = [
        {"method": name, "parameters": parameters.get(name.removeprefix("SpecDec, "), {}),
         "tokens_per_verifier_call": found.new_tokens / found.verifier_calls if found.verifier_calls else None,
         "identical_to_greedy": share_identical(found.sequences, greedy.sequences),
         **score(ours, found.sequences, test)}
        for name, found in runs.items()
    ]  # fmt: skip
    return rows, list(runs.values())


def by_words(found: Run, test: Sequence[Pair]) -> list[dict[str, Any]]:
    """Tokens per verifier call by the number of words of the source; empty where passes were not counted."""
    if found.verifier_calls is None:
        return []
    words = [len(pair.source.split()) for pair in test]
    made = []
    for low, high in WORD_BINS:
        lines = [i for i, count in enumerate(words) if low <= count <= high]
        if lines:
            tokens = sum(len(found.sequences[i]) for i in lines)
            calls = sum(found.extra["calls"][i] for i in lines)
            made.append({"words": [low, max(words[i] for i in lines)], "lines": len(lines),
                         "tokens_per_verifier_call": tokens / calls})  # fmt: skip
    return made


def time_on_test(ours: Ours, asked: Study, chosen: Any) -> list[dict[str, Any]]:
    """Batch size 1: seconds of a sentence, interleaved, against our own greedy; phases in a run of their own."""
    lines = [asked.test[i] for i in stratified_indices(asked.test, asked.timed_lines)]
    sources = encode(ours, lines)
    ours.workload = Workload(asked.models, sources, ours.workload.max_new_tokens, asked.threads)
    methods: dict[str, tuple[str, dict[str, Any]]] = {
        "greedy": ("greedy", {}),
        "SpecDec, lossless, adaptive block": ("specdec", {}),
    }
    for name, values in settings(ours, chosen).items():
        methods[f"SpecDec, {name}"] = ("specdec", values)
        if "beta" in values:
            free = {key: value for key, value in values.items() if key != "block_size"}
            methods[f"SpecDec, {name}, adaptive block"] = ("specdec", free)
    seconds: dict[str, list[list[float]]] = {name: [] for name in methods}
    with progress("timing", len(methods) * (asked.rounds + 1)) as advance:
        calls = {
            name: (lambda name=name, method=method: seconds[name].append(ours.run(Job(*method)).line_seconds))
            for name, method in methods.items()
        }
        timings = interleave(calls, asked.rounds, warmup=1, after=advance)
    rows = []
    for name, method in methods.items():
        lines_ms = [1000 * statistics.median(line) for line in zip(*seconds[name][1:], strict=True)]
        stats = ours.run(Job(*method)).extra["stats"]
        rows.append({
            "method": name, "ms_per_sentence": statistics.mean(lines_ms),
            "speedup": timings.speedup(name, "greedy").as_dict(),
            "tokens_per_verifier_call": stats["tokens_per_verifier_call"],
            "phases_ms_per_token": ours.profile(Job(*method)),
        })  # fmt: skip
    return rows


def encode(ours: Ours, pairs: Sequence[Pair]) -> list[list[int]]:
    return [ours.tokenizer(pair.source, verbose=False)["input_ids"] for pair in pairs]


def decode(ours: Ours, method: str, parameters: dict[str, Any], sources: list[list[int]]) -> Run:
    """`sources` in batches, not timed, with counts."""
    ours.workload = replace(ours.workload, sources=sources)
    return ours.run(Job(method, parameters, batch_size=BATCH_SIZE), count=True)


def peaks(ours: Ours) -> list[dict[str, Any]]:
    """Peak MiB of fresh processes, greedy and with the block drafter, by batch size. The sources are one of 32 tokens,
    over and over."""
    end, vocabulary = ours.verifier.model.architecture.eos_token_id, ours.verifier.model.architecture.vocabulary
    source = [5 + place % (vocabulary - 10) for place in range(31)] + [end]
    given = replace(ours.workload, sources=[source])
    jobs = {"greedy": Job("greedy"), "specdec": Job("specdec", {"block_size": 4})}
    found = {name: fresh_peaks("spec2seq", given, job, MEMORY_BATCHES) for name, job in jobs.items()}
    return [{"batch_size": size} | {name: by_size[size] for name, by_size in found.items()} for size in MEMORY_BATCHES]


def score(ours: Ours, sequences: list[list[int]], pairs: Sequence[Pair]) -> dict[str, Any]:
    texts = [ours.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in sequences]
    return quality(texts, [pair.reference for pair in pairs]).as_dict()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write specdec.json and specdec.md."""
    parser = argparse.ArgumentParser(prog="python -m spec2seq.evaluation.specdec", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--models", type=Path, default=Path("models/ende"))
    parser.add_argument("--dev-lines", type=int, default=500)
    parser.add_argument("--test-lines", type=int, default=2000)
    parser.add_argument("--timed-lines", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args(arguments)
    folder = os.environ.get("SPEC2SEQ_DATA")
    if not folder:
        raise UsageError("SPEC2SEQ_DATA is not set; it names the folder of ende.dev.tsv and ende.test.tsv")
    dev, test = (read_pairs(Path(folder) / f"ende.{part}.tsv") for part in ("dev", "test"))
    dev = [dev[i] for i in stratified_indices(dev, asked.dev_lines)]
    test = [test[i] for i in stratified_indices(test, asked.test_lines)]
    command = "python -m spec2seq.evaluation.specdec"
    for name in ("dev_lines", "test_lines", "timed_lines", "rounds", "threads"):
        command += f" --{name.replace('_', '-')} {getattr(asked, name)}"
    threads = set_threads(asked.threads)
    given = Study(asked.models, dev, test, asked.timed_lines, asked.rounds, threads)
    results = study(given, command)
    write_json(asked.out / "specdec.json", results)
    write_text(asked.out / "specdec.md", specdec_page(results))
    print(f"{asked.out / 'specdec.json'}\n{asked.out / 'specdec.md'}")


if __name__ == "__main__":
    run_main(main)
