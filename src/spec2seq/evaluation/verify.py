"""What `make verify` runs: real lines, every drafter, batch 1 and 16, float32 and int8, token ids against greedy's.

python -m spec2seq.evaluation.verify [--data FILE.tsv] [--model FOLDER] [--out FILE.json]
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spec2seq.errors import UsageError
from spec2seq.evaluation.command import run_main
from spec2seq.evaluation.lossless import LosslessReport, compare_with_greedy, describe, greedy_outputs
from spec2seq.evaluation.manifest import manifest
from spec2seq.evaluation.progress import progress
from spec2seq.evaluation.sample import pairs_to_measure
from spec2seq.files import write_json
from spec2seq.from_options import load
from spec2seq.options import BESIDE, MethodOptions, RunOptions, resolve

LINES = 2000
BATCH_SIZES = (1, 16)
DTYPES = ("float32", "int8")
# Fixed lengths draft where speculation does not pay, too: they try the machinery hardest.
DRAFTERS: dict[str, dict[str, Any]] = {
    "blocks, fixed": {"method": "specdec", "block_size": 4},
    "blocks, adaptive": {"method": "specdec"},
    "little, fixed": {"method": "assisted", "num_assistant_tokens": 5},
    "little, confidence": {"method": "assisted", "num_assistant_tokens": 10, "assistant_confidence_threshold": 0.4},
    "lookup": {"method": "lookup", "num_lookup_tokens": 5},
}


@dataclass(frozen=True)
class Replay:
    """One drafter at one batch size; greedy itself at a batch above 1 is replayed as well."""

    drafter: str
    batch_size: int
    report: LosslessReport
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {"drafter": self.drafter, "batch_size": self.batch_size, "seconds": round(self.seconds, 2),
                **self.report.as_dict()}  # fmt: skip


def replay(
    run: RunOptions,
    lines: Sequence[str],
    *,
    little: str | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    tie: float | None = None,
    bars: bool = False,
) -> Iterator[Replay]:
    """Compare every drafter at every batch size with greedy, each line alone.

    Args:
        run: the model, its dtype, device and threads.
        lines: source texts; those longer than the model allows are cut.
        little: the little model; by default the one beside the model. Block drafters are replayed where one lies
            beside the model.
        tie: logit gaps below this count as rounding.
        bars: show progress bars on a terminal.
    """

    def bar(title: str) -> contextlib.AbstractContextManager[Callable[[], None]]:
        return progress(title, len(lines)) if bars else contextlib.nullcontext(lambda: None)

    sources = greedy = None
    for name, values in {"greedy": {"method": "greedy"}, **DRAFTERS}.items():
        drafter = _drafter(run.model, values["method"], little)
        if drafter is not None and not Path(drafter).is_dir() and values["method"] == "specdec":
            continue
        model, method = load(run, MethodOptions(**values | ({"drafter": drafter} if drafter else {})))
        if sources is None:
            sources = [model.source_ids(line, "", truncate=True) for line in lines]
            with bar("greedy, batch 1") as advance:
                greedy = greedy_outputs(model, sources, progress=advance)
        for batch_size in batch_sizes:
            if name == "greedy" and batch_size == 1:
                continue
            started = time.perf_counter()
            with bar(f"{name}, batch {batch_size}") as advance:
                report = compare_with_greedy(
                    model, sources, method, greedy=greedy, batch_size=batch_size, tie=tie, progress=advance
                )
            yield Replay(name, batch_size, report, time.perf_counter() - started)


def _drafter(model: str, method: str, little: str | None) -> str | None:
    if method not in BESIDE:
        return None
    return little if little and BESIDE[method] == "little" else str(Path(model, BESIDE[method]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it, print one line a replay, write the results; exits with 1 if not every replay passed."""
    import torch
    import transformers

    asked = _parser().parse_args(arguments)
    transformers.logging.disable_progress_bar()
    if asked.limit < 1:
        raise UsageError(f"--limit is {asked.limit}; allowed: at least 1")
    pairs, data = pairs_to_measure(asked.data)
    lines = [pair.source for pair in pairs[: asked.limit]]
    print(f"{len(lines)} lines of {data}", flush=True)
    if len(lines) < asked.limit:
        print(f"(fewer than {asked.limit}: name a longer file with --data, or its folder in SPEC2SEQ_DATA)")
    replays, passed = [], True
    for dtype in DTYPES:
        run, _ = resolve({"model": asked.model, "threads": asked.threads, "dtype": dtype, "method": "greedy"})
        for done in replay(run, lines, little=asked.drafter, tie=asked.tie, bars=True):
            shown = describe(done.report, done.drafter)
            print(f"== {done.drafter}, {dtype}, batch {done.batch_size}\n{shown}", flush=True)
            replays.append({"dtype": dtype, **done.as_dict()})
            passed = passed and done.report.passed
    folders = {"verifier": Path(run.model), "little": Path(asked.drafter or Path(run.model, "little"))}
    if Path(run.model, "drafter").is_dir():
        folders["drafter"] = Path(run.model, "drafter")
    facts = manifest("python -m spec2seq.evaluation.verify", folders, " and ".join(DTYPES), torch.get_num_threads())
    results = {"manifest": facts, "data": data, "lines": len(lines), "tie": asked.tie, "passed": passed,
               "replays": replays}  # fmt: skip
    write_json(asked.out, results)
    print(f"{'passed' if passed else 'FAILED'}; results in {asked.out}")
    if not passed:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m spec2seq.evaluation.verify", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="TSV, sources first (default: $SPEC2SEQ_DATA, else the sample)")
    parser.add_argument("--model", help="folder or hub id (default: the bundled models/ende)")
    parser.add_argument("--drafter", help="the little model (default: MODEL/little)")
    parser.add_argument("--limit", type=int, default=LINES, help="lines to replay (default: %(default)s)")
    parser.add_argument("--threads", help="CPU threads")
    parser.add_argument("--tie", type=float, help="logit gaps below this are ties (default: 1e-4)")
    parser.add_argument("--out", type=Path, default=Path("out/verify.json"), help="results (default: %(default)s)")
    return parser


if __name__ == "__main__":
    run_main(main)
