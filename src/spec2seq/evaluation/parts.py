"""Encoder and decoder passes beside CTranslate2's, for the bundled model and for one of Transformer-base size.

python -m spec2seq.evaluation.parts --out docs/results

The larger one has random weights: its times say what a pass costs, and nothing of how many drafted tokens would stand.
"""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from spec2seq.config import check_range
from spec2seq.evaluation.command import run_main
from spec2seq.evaluation.costs import REPEATS
from spec2seq.evaluation.document import Table, as_markdown
from spec2seq.evaluation.manifest import manifest
from spec2seq.evaluation.peers import Job, Workload
from spec2seq.evaluation.peers.worker import Worker
from spec2seq.evaluation.progress import progress
from spec2seq.evaluation.tables import ENGINES, manifest_rows
from spec2seq.evaluation.timing import interleave
from spec2seq.files import write_json, write_text

BASE = {"d_model": 512, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048, "encoder_attention_heads": 8,
        "decoder_attention_heads": 8}  # fmt: skip
LENGTHS = (1, 4, 8, 16)  # tokens of a pass
SOURCE, STEPS = 32, 24  # tokens
CASES = [(engine, dtype, threads) for threads in (1, 2) for dtype in ("int8", "float32")
         for engine in ("spec2seq", "ctranslate2")]  # fmt: skip


def random_model(like: Path, folder: Path) -> Path:
    """Random weights of Transformer-base size with the vocabulary and the tokenizer of the Marian model `like`."""
    from transformers import MarianConfig, MarianMTModel, set_seed

    shutil.copytree(like, folder, ignore=shutil.ignore_patterns("*.safetensors*", "little", "drafter"))
    set_seed(1)
    MarianMTModel(MarianConfig.from_pretrained(like, **BASE)).save_pretrained(folder)
    return folder


def measure(models: Path, rounds: int, advance: Any) -> list[dict[str, Any]]:
    """A row for each engine, dtype and number of threads: milliseconds, the least of the rounds.

    `first` is a call for one token, the encoder's pass and everything around it included. A pass of ours is measured by
    itself, in turn with those of other lengths; a step of CTranslate2 is the difference between a call for one token
    and one for many, over their number.
    """
    source = [5 + place for place in range(SOURCE - 1)] + [0]
    rows = []
    with ExitStack() as stack:
        for engine, dtype, threads in CASES:
            workload = Workload(models, [source], STEPS + 1, threads, dtype)
            process = stack.enter_context(Worker(engine, workload, {}))
            rows.append({"engine": engine, "dtype": dtype, "threads": threads, "process": process})
        calls = {}
        for row in rows:
            name = f"{row['engine']} {row['dtype']} {row['threads']}"
            calls[f"{name} first"] = _call(row, 1)
            if row["engine"] == "ctranslate2":
                calls[f"{name} all"] = _call(row, STEPS + 1)
        timings = interleave(calls, rounds, warmup=2, after=advance)
        for row in rows:
            name = f"{row['engine']} {row['dtype']} {row['threads']}"
            process = row.pop("process")
            first = min(timings.seconds[f"{name} first"])
            row["first_ms"] = 1000 * first
            if row["engine"] == "ctranslate2":
                row["pass_ms"] = {"1": 1000 * (min(timings.seconds[f"{name} all"]) - first) / STEPS}
            else:
                found = process.ask("costs", batch_sizes=[1])["verifier_ms"]["1"]
                row["pass_ms"] = {str(length): found[str(length)] for length in LENGTHS}
    return rows


def _call(row: dict[str, Any], tokens: int) -> Any:
    parameters = {} if row["engine"] == "spec2seq" else {"min_decoding_length": tokens}
    job = vars(Job("greedy", parameters, max_new_tokens=tokens))
    return lambda: row["process"].ask("time", job=job)


def page(results: dict[str, Any]) -> str:
    """The Markdown page of parts.json."""
    blocks: list[Any] = [
        "# Encoder and passes, beside CTranslate2",
        f"Made by `{results['manifest']['command']}`; do not edit. Batch size 1, a source of {SOURCE} tokens, "
        "milliseconds, every engine in a process of its own. “First” is a call for one token, the least of "
        f"{results['rounds']} interleaved rounds: the encoder, what cross-attention keeps of it, one pass. Passes are "
        f"measured in two ways. Ours is the least of {REPEATS} in a row, by themselves, in a cache that is warm. "
        f"CTranslate2's is the mean of {STEPS} steps within calls: a {STEPS}th of what {STEPS} more tokens take, by "
        "the least of the rounds; its calls come after other engines' and find colder caches. That favours ours. The "
        "model of base size has random weights.",
    ]
    head = ["engine", "dtype", "threads", "first", *(f"{n} token{'s' * (n > 1)}" for n in LENGTHS)]
    for size, rows in results["models"].items():
        table = [
            [ENGINES[row["engine"]], row["dtype"], str(row["threads"]), f"{row['first_ms']:.2f}",
             *(f"{row['pass_ms'][str(n)]:.2f}" if str(n) in row["pass_ms"] else "–" for n in LENGTHS)]
            for row in rows
        ]  # fmt: skip
        blocks += [f"## {size}", Table(head, table, left=2)]
    return as_markdown([*blocks, manifest_rows(results["manifest"])])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write parts.json and parts.md."""
    parser = argparse.ArgumentParser(prog="python -m spec2seq.evaluation.parts", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--models", type=Path, default=Path("models/ende"))
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args(arguments)
    check_range("rounds", asked.rounds, low=1)
    command = f"python -m spec2seq.evaluation.parts --rounds {asked.rounds}"
    results = {"manifest": manifest(command, {"verifier": asked.models}, "int8", 2), "rounds": asked.rounds}
    with tempfile.TemporaryDirectory() as name, progress("measuring", 2 * 12 * (asked.rounds + 2)) as advance:
        folders = {
            "models/ende": asked.models.resolve(),
            "Transformer-base": random_model(asked.models, Path(name, "base")),
        }
        results["models"] = {size: measure(folder, asked.rounds, advance) for size, folder in folders.items()}
    write_json(asked.out / "parts.json", results)
    write_text(asked.out / "parts.md", page(results))
    print(f"{asked.out / 'parts.json'}\n{asked.out / 'parts.md'}")


if __name__ == "__main__":
    run_main(main)
