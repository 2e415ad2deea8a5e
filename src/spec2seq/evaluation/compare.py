"""Our methods beside Transformers and CTranslate2 at batch size 1: same weights, lines, caps, threads and dtype.

python -m spec2seq.evaluation.compare --out docs/results     measures, and writes compare.json and compare.md
python -m spec2seq.evaluation.compare --readme README.md     writes the table of the committed JSON into README
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spec2seq.errors import Spec2SeqError
from spec2seq.evaluation.command import run_main
from spec2seq.evaluation.files import read_json, write_json, write_text
from spec2seq.evaluation.manifest import manifest
from spec2seq.evaluation.metrics import first_difference, quality, share_identical
from spec2seq.evaluation.peers import Workload
from spec2seq.evaluation.peers.worker import ENVIRONMENT, Worker
from spec2seq.evaluation.progress import progress
from spec2seq.evaluation.sample import Pair, pairs_to_measure, stratified
from spec2seq.evaluation.tables import markdown_page, readme_table, replace_between_markers
from spec2seq.evaluation.timing import Timings, interleave


@dataclass(frozen=True)
class Contender:
    """One row of the comparison."""

    engine: str
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    again: bool = False  # the baseline once more: how much two measurements of the same thing differ

    @property
    def name(self) -> str:
        shown = ", ".join(f"{key}={value}" for key, value in self.parameters.items())
        return f"{self.engine} {self.method} {self.dtype} ({shown})" + (" again" if self.again else "")


GREEDY = Contender("spec2seq", "greedy")
HF_GREEDY = Contender("hf", "greedy")
CT2_GREEDY = Contender("ctranslate2", "greedy")
BASELINES = {"speedup_vs_greedy": GREEDY, "speedup_vs_hf": HF_GREEDY, "speedup_vs_ctranslate2": CT2_GREEDY}

CONTENDERS = (
    GREEDY,
    Contender("spec2seq", "greedy", again=True),
    Contender("spec2seq", "specdec"),
    *(Contender("spec2seq", "specdec", {"block_size": k}) for k in (3, 4, 6)),
    Contender("spec2seq", "specdec", {"beta": 3, "tau": 1.0}),
    Contender("spec2seq", "specdec", {"block_size": 6, "beta": 5, "tau": 3.0}),
    Contender("spec2seq", "assisted"),
    *(Contender("spec2seq", "assisted", {"num_assistant_tokens": k}) for k in (2, 4)),
    Contender("spec2seq", "assisted", {"num_assistant_tokens": 10, "assistant_confidence_threshold": 0.4}),
    Contender("spec2seq", "lookup"),
    Contender("spec2seq", "bild"),
    HF_GREEDY,
    Contender("hf", "assisted"),  # Transformers' own defaults
    Contender("hf", "assisted", {"num_assistant_tokens": 4, "num_assistant_tokens_schedule": "constant",
                                 "assistant_confidence_threshold": 0.0}),
    CT2_GREEDY,
    Contender("ctranslate2", "greedy", dtype="int8"),
)  # fmt: skip
SETTLE = 0.25  # seconds between two calls: OpenMP threads that are told nothing spin for up to 0.2 before they sleep
PROFILED = (GREEDY, Contender("spec2seq", "specdec"), Contender("spec2seq", "assisted"))


def compare(
    models: Path, pairs: Sequence[Pair], data: str, rounds: int = 7, threads: int | None = 2,
    contenders: Sequence[Contender] = CONTENDERS, command: str = "", environment: dict[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure and return what compare.json holds. A peer that is not installed is a row that says so."""
    from transformers import AutoTokenizer

    workload = _workload(models, pairs, threads)
    if workload.drafter is None:
        contenders = [contender for contender in contenders if contender.method != "specdec"]
    results: dict[str, Any] = {
        "manifest": manifest(command, workload.folders(), "float32", threads),
        "data": {"file": data, "lines": len(pairs), "rounds": rounds, "max_new_tokens": workload.max_new_tokens},
        "environment": ENVIRONMENT if environment is None else environment,
    }
    with contextlib.ExitStack() as stack:
        workers, missing = _start(stack, workload, contenders, environment)
        present = [c for c in contenders if (c.engine, c.dtype) in workers]
        total = len(present) * (rounds + 2)
        advance = stack.enter_context(progress("comparing", total))
        outputs = {}
        for contender in present:
            outputs[contender.name] = _ask(workers, contender, "run")
            advance()
        timings, line_seconds = _time(workers, present, rounds, advance)
        results["agreement"] = _agreement(workers, present, outputs)
        results["phases_ms_per_token"] = [
            {"method": c.method, "parameters": c.parameters} | _ask(workers, c, "profile")
            for c in PROFILED
            if c in present
        ]
        results["pass_costs"] = workers["spec2seq", "float32"].ask("costs")
    decode = AutoTokenizer.from_pretrained(models).decode
    results["rows"] = [_row(c, present, outputs, timings, line_seconds, pairs, decode) for c in present]
    results["rows"] += [
        _identity(c) | {"unavailable": missing[c.engine, c.dtype]} for c in contenders if c not in present
    ]
    return results


def _workload(models: Path, pairs: Sequence[Pair], threads: int | None) -> Workload:
    from spec2seq import Seq2Seq

    model = Seq2Seq.from_pretrained(models)
    sources = [model.encode_text(pair.source) for pair in pairs]
    return Workload(Path(models).resolve(), sources, model.max_new_tokens(), threads)


def _start(stack: contextlib.ExitStack, workload: Workload, contenders: Sequence[Contender], environment):
    """A process for each engine and dtype; reasons for those that cannot start."""
    workers: dict[tuple[str, str], Worker] = {}
    missing: dict[tuple[str, str], str] = {}
    for key in dict.fromkeys((c.engine, c.dtype) for c in contenders):
        engine, dtype = key
        given = Workload(workload.models, workload.sources, workload.max_new_tokens, workload.threads, dtype)
        try:
            workers[key] = stack.enter_context(Worker(engine, given, environment))
        except Spec2SeqError as error:
            if engine == "spec2seq":
                raise
            missing[key] = str(error)
    return workers, missing


def _ask(workers: dict, contender: Contender, do: str) -> Any:
    worker = workers[contender.engine, contender.dtype]
    return worker.ask(do, method=contender.method, parameters=contender.parameters)


def _time(workers: dict, present: Sequence[Contender], rounds: int, advance: Callable[[], Any]):
    """Interleaved rounds over all contenders; the seconds of each line come from inside of each process."""
    line_seconds: dict[str, list[list[float]]] = {c.name: [] for c in present}

    def call(contender: Contender) -> Callable[[], None]:
        return lambda: line_seconds[contender.name].append(_ask(workers, contender, "time"))

    def after() -> None:
        advance()
        time.sleep(SETTLE)

    timings = interleave({c.name: call(c) for c in present}, rounds, warmup=1, after=after)
    return timings, {name: runs[-rounds:] for name, runs in line_seconds.items()}


def _identity(contender: Contender) -> dict[str, Any]:
    return {
        "engine": contender.engine, "method": contender.method, "parameters": contender.parameters,
        "again": contender.again, "batch_size": 1, "dtype": contender.dtype,
    }  # fmt: skip


def _row(
    contender: Contender, present: Sequence[Contender], outputs: dict, timings: Timings, line_seconds: dict,
    pairs: Sequence[Pair], decode: Callable,
) -> dict[str, Any]:  # fmt: skip
    """Seconds are for all lines; milliseconds per token and tokens per second come from their median."""
    name = contender.name
    sequences, calls = outputs[name]["sequences"], outputs[name]["verifier_calls"]
    tokens = sum(map(len, sequences))
    seconds = timings.spread(name)
    own = next(
        (c for c in present if (c.engine, c.method, c.dtype) == (contender.engine, "greedy", contender.dtype)), None
    )
    latencies = [1000 * statistics.median(line) for line in zip(*line_seconds[name], strict=True)]
    scores = quality([decode(s, skip_special_tokens=True) for s in sequences], [pair.reference for pair in pairs])
    return _identity(contender) | {
        "new_tokens": tokens,
        "seconds": seconds.as_dict(),
        "ms_per_token": 1000 * seconds.median / tokens,
        "tokens_per_second": tokens / seconds.median,
        "latency_p50_ms": _percentile(latencies, 50),
        "latency_p95_ms": _percentile(latencies, 95),
        "tokens_per_verifier_call": tokens / calls if calls else None,
        "identical_to_greedy": share_identical(sequences, outputs[own.name]["sequences"]) if own else None,
        "identical_to_our_greedy": share_identical(sequences, outputs[GREEDY.name]["sequences"]),
        **scores.as_dict(),
        **{
            key: timings.speedup(name, baseline.name).as_dict() if baseline in present else None
            for key, baseline in BASELINES.items()
        },
    }  # fmt: skip


def _percentile(values: Sequence[float], percent: int) -> float:
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _agreement(workers: dict, present: Sequence[Contender], outputs: dict) -> list[dict[str, Any]]:
    """Greedy outputs of other engines against ours: equal lines, and each difference with the logit gap there."""
    mine, found = outputs[GREEDY.name]["sequences"], []
    for contender in present:
        if contender.method != "greedy" or contender.engine == "spec2seq":
            continue
        theirs, differences = outputs[contender.name]["sequences"], []
        for line, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            place = first_difference(a, b)
            if place is not None:
                gap = workers["spec2seq", "float32"].ask("gap", line=line, prefix=a[:place])
                differences.append({"line": line + 1, "token": place + 1, "logit_gap": gap})
        found.append({
            "engine": contender.engine, "dtype": contender.dtype, "lines": len(mine),
            "identical": len(mine) - len(differences), "differences": differences,
        })  # fmt: skip
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m spec2seq.evaluation.compare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--models", type=Path, default=Path("models/ende"))
    parser.add_argument("--data", type=Path, help="source TAB reference; default: $SPEC2SEQ_DATA, else the sample")
    parser.add_argument("--lines", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--openmp", choices=("passive", "default"), default="passive",
                        help="how waiting threads of every engine wait")  # fmt: skip
    parser.add_argument("--readme", type=Path, metavar="FILE", help="only write the table of the JSON into FILE")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or write README's table."""
    asked = _parser().parse_args(arguments)
    target = asked.out / "compare.json"
    if asked.readme is not None:
        try:
            text = asked.readme.read_text(encoding="utf-8")
        except OSError as error:
            raise Spec2SeqError(f"{asked.readme}: cannot be read: {error.strerror}") from None
        write_text(asked.readme, replace_between_markers(text, readme_table(read_json(target))))
        return
    pairs, data = pairs_to_measure(asked.data)
    command = f"python -m spec2seq.evaluation.compare --lines {asked.lines} --rounds {asked.rounds} "
    command += f"--threads {asked.threads} --openmp {asked.openmp}"
    command += f" --data {asked.data.name}" if asked.data else ""
    environment = {} if asked.openmp == "default" else None
    results = compare(
        asked.models, stratified(pairs, asked.lines), data, asked.rounds, asked.threads, command=command,
        environment=environment,
    )  # fmt: skip
    write_json(target, results)
    write_text(target.with_suffix(".md"), markdown_page(results))
    print(readme_table(results))
    print(f"\n{target}\n{target.with_suffix('.md')}")


if __name__ == "__main__":
    run_main(main)
