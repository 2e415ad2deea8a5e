"""Measure every contender: quality on all lines in batches, time on a fixed sample in interleaved rounds."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spec2seq.errors import Spec2SeqError
from spec2seq.evaluation.bench.engines import SETTLE, Engines, make_workload, running
from spec2seq.evaluation.bench.recipe import Contender, Recipe, contenders
from spec2seq.evaluation.bench.rows import (
    Measured,
    Scores,
    Timed,
    acceptance,
    latency_by_length,
    line_milliseconds,
    make_rows,
)
from spec2seq.evaluation.bench.sentences import sentences
from spec2seq.evaluation.manifest import manifest
from spec2seq.evaluation.metrics import first_difference
from spec2seq.evaluation.peers.worker import ENVIRONMENT
from spec2seq.evaluation.progress import progress
from spec2seq.evaluation.sample import Pair, stratified, stratified_indices
from spec2seq.evaluation.timing import interleave

QUALITY_BATCH = 16
WARM_LINES = 4  # at batch size 1; a batch size above that is warmed by one pass over all timed lines
PROFILED_LINES = 16
START_SECONDS = 8.0  # of a fresh process, with its one batch; for the estimate


def run_bench(
    models: Path, pairs: Sequence[Pair], file: str, recipe: Recipe, command: str, say: Callable[[str], Any] = str
) -> dict[str, Any]:
    """What results.json holds. `say` is told how long it will take.

    Raises Spec2SeqError where our greedy cannot run or a line is too long for the model; whatever else fails is a row
    that says so.
    """
    pairs = stratified(pairs, recipe.quality_lines or len(pairs))
    scores = Scores(recipe.metrics, [pair.reference for pair in pairs])  # a missing package is said before the work
    workload, tokenizer = make_workload(models, [pair.source for pair in pairs], recipe, file)
    all_of_them = contenders(recipe)
    timed_lines = stratified_indices(pairs, recipe.lines)
    with running(workload, recipe, all_of_them) as engines:
        bench = Bench(recipe, all_of_them, engines, timed_lines)
        measured = bench.measure(say)
        more = bench.more(measured)
    decode = tokenizer.decode
    texts = {
        name: [decode(tokens, skip_special_tokens=True) for tokens in output["sequences"]]
        for name, output in measured.outputs.items()
        if len(measured.scored[name]) == len(pairs)
    }
    rows = make_rows(recipe, all_of_them, measured, texts, scores)
    return {
        "manifest": manifest(command, workload.folders(), recipe.dtype[0], recipe.threads, {"bootstrap": 12345}),
        "data": {"file": file, "lines": len(pairs), "timed_lines": len(timed_lines),
                 "max_new_tokens": workload.max_new_tokens, "signatures": scores.signatures()},
        "recipe": asdict(recipe),
        "environment": {} if recipe.openmp == "default" else ENVIRONMENT,
        "rows": rows,
        **more,
        "sentences": sentences(pairs, tokenizer, bench.traced(measured)),
    }  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """The steps of a bench over running engines. `timed_lines` are places among the lines of the workload."""

    recipe: Recipe
    contenders: list[Contender]
    engines: Engines
    timed_lines: list[int]

    @property
    def greedy(self) -> Contender:
        return self.contenders[0]

    def measure(self, say: Callable[[str], Any]) -> Measured:
        """Warm up, tell `say` the estimate, decode all lines, take the time."""
        refusals: dict[tuple[str, int | None], str] = {}
        for size in self.recipe.batch_sizes:
            self.engines.choose_threads([size], self._warm_lines(size))
        passes = self._warm_up(refusals)
        say(f"this takes about {self._estimate(passes) / 60:.0f} minutes")
        able = [c for c in self.contenders if (c.name, None) not in refusals]
        rounds = sum(self._rounds(c, size) for c, size in self._jobs(refusals))
        with progress("measuring", 2 * len(able) + rounds) as advance:
            outputs, scored = self._decode(able, advance)
            timed = {size: self._time(size, refusals, advance) for size in self.recipe.batch_sizes}
            first, peaks = {}, {}
            for c in able:
                first[c.name] = self._first_token(c)
                if self.recipe.memory and not c.again:
                    peaks[c.name] = self.engines.peaks(c, self.recipe.batch_sizes)
                advance()
        sizes = self.engines.worker(self.greedy.engine, self.greedy.dtype).ask("sizes")
        threads = {(c.name, size): self.engines.threads_of(c.engine, c.dtype, size) for c, size in self._jobs({})}
        return Measured(outputs, scored, timed, first, peaks, sizes, refusals, threads)

    def more(self, measured: Measured) -> dict[str, Any]:
        """What belongs to no single row: agreement, phases, costs of a pass, latency by length, acceptance."""
        ours = [c for c in self.contenders if c.engine == "spec2seq" and not c.again and c.name in measured.outputs]
        lengths = [len(measured.outputs[self.greedy.name]["sequences"][line]) for line in self.timed_lines]
        one = measured.timed[1]
        named = {c.name: c for c in self.contenders if not c.again and c.name in one.tokens}
        latency = latency_by_length(lengths, {name: line_milliseconds(one, name) for name in named})
        latency["milliseconds"] = [
            named[name].identity() | {"values": v} for name, v in latency["milliseconds"].items()
        ]
        some = self.timed_lines[:: max(1, len(self.timed_lines) // PROFILED_LINES)]
        stats = {c: measured.outputs[c.name]["extra"]["stats"] for c in ours if c.method != "beam"}
        worker = self.engines.worker(self.greedy.engine, self.greedy.dtype)
        return {
            "latency": latency,
            "acceptance": [c.identity() | acceptance(found) for c, found in stats.items() if found["drafted"]],
            "phases_ms_per_token": [c.identity() | self.engines.ask(c, "profile", some) for c in stats],
            "pass_costs": worker.ask("costs", batch_sizes=list(self.recipe.batch_sizes)),
            "tensor_bytes": measured.sizes,
            "agreement": self._agreement(measured),
        }

    def traced(self, measured: Measured) -> dict[str, Any] | None:
        """The output of the one among our lossless methods with a drafter that wrote most with a pass, and its name."""

        def lossless(c: Contender) -> bool:
            ours = c.engine == "spec2seq" and c.method in ("specdec", "assisted", "lookup")
            return ours and not c.parameters.keys() & {"beta", "tau"} and c.name in measured.outputs

        def worth(c: Contender) -> float:
            return measured.outputs[c.name]["extra"]["stats"]["tokens_per_verifier_call"]

        best = max(filter(lossless, self.contenders), key=worth, default=None)
        return None if best is None else best.identity() | measured.outputs[best.name]

    def _jobs(self, refusals: dict) -> list[tuple[Contender, int]]:
        return [
            (c, size)
            for size in self.recipe.batch_sizes
            for c in self.contenders
            if (c.name, None) not in refusals and (c.name, size) not in refusals
        ]

    def _rounds(self, contender: Contender, size: int) -> int:
        rounds = self.recipe.rounds if size == 1 else min(self.recipe.batch_rounds, self.recipe.rounds)
        return min(self.recipe.side_rounds, rounds) if contender.side else rounds

    def _warm_up(self, refusals: dict[tuple[str, int | None], str]) -> dict[tuple[Contender, int], float]:
        """Seconds that a pass over the timed lines will take; what cannot run is put into `refusals`. Raises
        Spec2SeqError if our greedy is among it."""
        found = {}
        for c in self.contenders:
            if (c.engine, c.dtype) in self.engines.missing:
                refusals[c.name, None] = self.engines.missing[c.engine, c.dtype]
                continue
            for size in self.recipe.batch_sizes:
                lines = self._warm_lines(size)
                started = time.perf_counter()
                try:
                    self.engines.ask(c, "time", lines, size)
                except Spec2SeqError as error:
                    if c == self.greedy:
                        raise
                    refusals[c.name, None if size == 1 else size] = str(error)
                    if size == 1:
                        break
                    continue
                found[c, size] = (time.perf_counter() - started) * len(self.timed_lines) / len(lines)
        return found

    def _warm_lines(self, size: int) -> list[int]:
        return self.timed_lines[:: max(1, len(self.timed_lines) // WARM_LINES)] if size == 1 else self.timed_lines

    def _estimate(self, passes: dict[tuple[Contender, int], float]) -> float:
        """Seconds, roughly: a batch of the quality run is taken for the largest that was warmed up."""
        lines = len(self.engines.workload.sources) / len(self.timed_lines)
        total = 0.0
        for c in self.contenders:
            sizes = [size for size in self.recipe.batch_sizes if (c, size) in passes]
            if sizes:
                total += sum((passes[c, size] + SETTLE) * self._rounds(c, size) for size in sizes)
                total += passes[c, sizes[-1]] * (lines if sizes[-1] > 1 else 1)
                total += START_SECONDS if self.recipe.memory and not c.again else 0.0
        return total

    def _decode(self, able: Sequence[Contender], advance: Callable[[], Any]) -> tuple[dict, dict]:
        """Every line in batches; an engine that refuses batches decodes the timed lines, one by one."""
        outputs: dict[str, dict[str, Any]] = {}
        scored: dict[str, list[int]] = {}
        everything = list(range(len(self.engines.workload.sources)))
        for c in able:
            if c.again:
                outputs[c.name], scored[c.name] = outputs[self.greedy.name], everything
            else:
                try:
                    outputs[c.name], scored[c.name] = self.engines.ask(c, "run", None, QUALITY_BATCH), everything
                except Spec2SeqError:
                    outputs[c.name], scored[c.name] = self.engines.ask(c, "run", self.timed_lines), self.timed_lines
            advance()
        return outputs, scored

    def _time(self, size: int, refusals: dict, advance: Callable[[], Any]) -> Timed:
        """Interleaved rounds over all that can; the seconds of each line come from inside of each process."""
        present = [c for c, at in self._jobs(refusals) if at == size]
        answers: dict[str, list[dict[str, Any]]] = {c.name: [] for c in present}

        def call(c: Contender) -> Callable[[], None]:
            return lambda: answers[c.name].append(self.engines.ask(c, "time", self.timed_lines, size))

        def after() -> None:
            advance()
            time.sleep(SETTLE)

        rounds = {c.name: self._rounds(c, size) for c in present}
        timings = interleave({c.name: call(c) for c in present}, max(rounds.values()), 0, fewer=rounds, after=after)
        lines = {name: [answer["line_seconds"] for answer in found] for name, found in answers.items()}
        return Timed(
            timings, {name: found[-1]["new_tokens"] for name, found in answers.items()}, lines if size == 1 else {}
        )

    def _first_token(self, contender: Contender) -> float:
        """Median seconds of a call that may write one token only."""
        return statistics.median(self.engines.ask(contender, "time", self.timed_lines, 1, 1)["line_seconds"])

    def _agreement(self, measured: Measured) -> list[dict[str, Any]]:
        """Other engines' greedy against ours: equal lines, and each difference with our logit gap there."""
        worker = self.engines.worker(self.greedy.engine, self.greedy.dtype)
        mine, found = measured.outputs[self.greedy.name]["sequences"], []
        for c in self.contenders:
            if c.method != "greedy" or c.again or c == self.greedy or c.name not in measured.outputs:
                continue
            theirs, differences = measured.outputs[c.name]["sequences"], []
            for line, (a, b) in enumerate(zip(mine, theirs, strict=True)):
                place = first_difference(a, b)
                if place is not None:
                    gap = worker.ask("gap", line=line, prefix=a[:place])
                    differences.append({"line": line + 1, "token": place + 1, "logit_gap": gap})
            found.append({"engine": c.engine, "dtype": c.dtype, "lines": len(mine),
                          "identical": len(mine) - len(differences), "differences": differences})  # fmt: skip
        return found
