"""Runs the recipes that need a GPU, in order of value: `make train-queue`, or `python -m spec2seq.training.queue`.

Every call trains for at most `--max-minutes` and ends cleanly; the next call goes on, also on a fresh machine if the
folder `--out` comes along. results.json there says after each step what is done.
"""

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.files import write_json
from spec2seq.training.recipe import load_recipe
from spec2seq.training.run import TrainResult, train

# Most valuable first: a better verifier of the bundled size; what it writes and its block drafter; its little model;
# then the large verifier.
RECIPES = ("ende-verifier-long", "ende-drafter-long", "ende-little-long", "ende-verifier-base")
SESSION_MINUTES = 8.5  # of a 10-minute call: the rest is for starting, the last checkpoint and the copy


def run_queue(
    recipes: Sequence[Path], out: Path, data_dir: Path | None = None, max_minutes: float = SESSION_MINUTES,
    report: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """Train the recipes one after the other, each in `out`/<name>, until all are done or the time is up.

    Returns what results.json holds: per recipe `state` (finished, stopped, failed, waiting), steps, minutes, scores.
    One that fails is recorded with its error, and the next is tried.
    """
    started = time.monotonic()
    loaded = {recipe.name: recipe for recipe in map(load_recipe, recipes)}
    results: dict[str, Any] = {name: {"state": "waiting"} for name in loaded}
    for name, recipe in loaded.items():
        left = max_minutes - (time.monotonic() - started) / 60
        done = (out / name / "final" / "training_summary.json").is_file()
        stopped = any(entry["state"] == "stopped" for entry in results.values())
        if not done and (stopped or left <= 0.1):
            continue
        try:
            result = train(recipe, out / name, data_dir, max(0.1, left), report)
            results[name] = _entry(result)
        except Exception as error:  # also what the device says: the next recipe may fit
            results[name] = {"state": "failed", "error": f"{type(error).__name__}: {error}"}
        write_json(out / "results.json", results)
    write_json(out / "results.json", results)
    return results


def _entry(result: TrainResult) -> dict[str, Any]:
    entry = {"state": "finished" if result.finished else "stopped", "folder": str(result.folder)}
    entry |= {"steps": result.step, "target_tokens_seen": result.tokens, "minutes": round(result.minutes, 1)}
    if result.summary is not None:
        entry |= {"dev": result.summary["dev"], "test": result.summary["test"]}
    return entry


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0 if nothing failed, finished or not."""
    parser = argparse.ArgumentParser(prog="python -m spec2seq.training.queue", description=__doc__.split("\n")[0])
    parser.add_argument("recipes", nargs="*", type=Path, help="default: the queue's own, from ./recipes")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the runs and results.json")
    parser.add_argument("--data", type=Path, help="folder of the data files; default $SPEC2SEQ_DATA")
    parser.add_argument("--max-minutes", type=float, default=SESSION_MINUTES, help="of this call (%(default)s)")
    options = parser.parse_args(arguments)
    recipes = options.recipes or [Path("recipes") / f"{name}.yaml" for name in RECIPES]
    try:
        if not options.max_minutes > 0:
            raise UsageError(f"--max-minutes is {options.max_minutes}; allowed: above 0")
        results = run_queue(
            recipes, options.out, options.data, options.max_minutes, functools.partial(print, flush=True)
        )
    except Spec2SeqError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same call goes on", file=sys.stderr)
        return 130
    return 1 if any(entry["state"] == "failed" for entry in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
