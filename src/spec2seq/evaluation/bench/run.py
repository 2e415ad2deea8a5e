"""Measure every contender: quality on all lines in batches, time on a fixed sample in interleaved rounds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from spec2seq.errors import Spec2SeqError
from spec2seq.evaluation.bench.engines import Engines, make_workload, running
from spec2seq.evaluation.bench.recipe import Contender, Models, Recipe, contenders
from spec2seq.evaluation.bench.rows import (
    Measured,
    Scores,
    Timed,
    acceptance,
    common,
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
SLICE = 4  # lines of a round at batch size 1, of all lengths: engines take turns more often than passes end
PROFILED_LINES = 16
START_SECONDS = 5.0  # of a fresh process with its batches, beside another one; for the estimate


def run_bench(
    models: Models, pairs: Sequence[Pair], file: str, recipe: Recipe, command: str, say: Callable[[str], Any] = str
) -> dict[str, Any]:
    """What results.json holds. `say` is told how long it will take.

    Raises Spec2SeqError where our greedy cannot run or a line is too long for the model; whatever else fails is a row
    that says so.
    """
    pairs = stratified(pairs, recipe.quality_lines or len(pairs))
    scores = Scores(recipe.metrics, [pair.reference for pair in pairs])  # a missing package is said before the work
    workload, tokenizer = make_workload(models, [pair.source for pair in pairs], recipe, file)
    all_of_them = contenders(recipe)
    lengths = [len(source) for source in workload.sources]
    timed = {size: stratified_indices(pairs, max(recipe.lines, size)) for size in recipe.batch_sizes}
    with running(workload, recipe, all_of_them) as engines:
        bench = Bench(recipe, all_of_them, engines, slices(timed[1], lengths), timed)
        measured = bench.measure(say)
        more = bench.more(measured)
    traced = bench.traced(measured)
    decode = tokenizer.decode
    texts = {
        name: [decode(tokens, skip_special_tokens=True) for tokens in output["sequences"]]
        for name, output in measured.outputs.items()
        if len(measured.scored[name]) == len(pairs)
    }
    rows = make_rows(recipe, all_of_them, measured, texts, scores)
    return {
        "manifest": manifest(command, workload.folders(), recipe.dtype[0], workload.threads, {"bootstrap": 12345}),
        "data": {"file": file, "lines": len(pairs), "timed_lines": len(timed[1]), "slices": len(bench.slices),
                 "max_new_tokens": workload.max_new_tokens, "signatures": scores.signatures()},
        "recipe": asdict(recipe),
        "environment": {} if recipe.openmp == "default" else ENVIRONMENT,
        "rows": rows,
        **more,
        "sentences_of": traced and traced.identity(),
        "sentences": sentences(pairs, tokenizer, traced and measured.outputs[traced.name]),
    }  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """The steps of a bench over running engines. `slices` are the places of the timed lines among those of the
    workload, a list for each round of a pass; `batches` the same by batch size, where a round is a pass."""

    recipe: Recipe
    contenders: list[Contender]
    engines: Engines
    slices: list[list[int]]
    batches: dict[int, list[int]]

    @property
    def timed_lines(self) -> list[int]:
        return [line for some in self.slices for line in some]

    @property
    def greedy(self) -> Contender:
        return self.contenders[0]

    def measure(self, say: Callable[[str], Any]) -> Measured:
        """Warm up, tell `say` the estimate, decode all lines, take the time."""
        refusals: dict[tuple[str, int | None], str] = {}
        for size in self.recipe.batch_sizes:
            self.engines.choose(self.contenders, size, self._warm_lines(size))
        passes = self._warm_up(refusals)
        say(f"this takes about {self._estimate(passes) / 60:.0f} minutes")
        able = [c for c in self.contenders if (c.name, None) not in refusals]
        rounds = sum(self._rounds(c, size) for c, size in self._jobs(refusals))
        once = [c for c in able if not c.again]
        with progress("measuring", (2 if self.recipe.memory else 1) * len(once) + rounds) as advance:
            outputs, scored = self._decode(able, refusals, advance)
            timed = {size: self._time(size, refusals, advance) for size in self.recipe.batch_sizes}
            once = [c for c in once if c.name in outputs]
            peaks = self.engines.peaks(once, self.recipe.batch_sizes, advance) if self.recipe.memory else {}
        sizes = self.engines.process(self.greedy).worker.ask("sizes")
        started = {(c.name, size): self.engines.process(c, size) for c, size in self._jobs(refusals)}
        ran = {job: {"threads": one.threads, "environment": one.environment} for job, one in started.items()}
        return Measured(outputs, scored, timed, peaks, sizes, refusals, ran)

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
        worker = self.engines.process(self.greedy).worker
        costs = None
        if self.recipe.device == "cpu":  # on a GPU the rows run by graphs, and these passes would not
            costs = worker.ask("costs", batch_sizes=list(self.recipe.batch_sizes))
        return {
            "latency": latency,
            "acceptance": [c.identity() | acceptance(found) for c, found in stats.items() if found["drafted"]],
            "phases_ms_per_token": [c.identity() | self.engines.ask(c, "profile", some) for c in stats],
            "pass_costs": costs,
            "tensor_bytes": measured.sizes,
            "agreement": self._agreement(measured),
        }

    def traced(self, measured: Measured) -> Contender | None:
        """The one among our lossless methods with a drafter that wrote most with a pass."""

        def lossless(c: Contender) -> bool:
            ours = c.engine == "spec2seq" and c.method in ("specdec", "assisted", "lookup")
            return ours and not c.parameters.keys() & {"beta", "tau"} and c.name in measured.outputs

        def worth(c: Contender) -> float:
            return measured.outputs[c.name]["extra"]["stats"]["tokens_per_verifier_call"]

        return max(filter(lossless, self.contenders), key=worth, default=None)

    def _jobs(self, refusals: dict) -> list[tuple[Contender, int]]:
        return [
            (c, size)
            for size in self.recipe.batch_sizes
            for c in self.contenders
            if (c.name, None) not in refusals and (c.name, size) not in refusals
        ]

    def _rounds(self, contender: Contender, size: int) -> int:
        passes = self.recipe.rounds if size == 1 else min(self.recipe.batch_rounds, self.recipe.rounds)
        passes = min(self.recipe.side_rounds, passes) if contender.side else passes
        return passes * (len(self.slices) if size == 1 else 1)

    def _warm_up(self, refusals: dict[tuple[str, int | None], str]) -> dict[tuple[Contender, int], float]:
        """Seconds that a round takes; what cannot run is put into `refusals`. Raises Spec2SeqError if our greedy is
        among it."""
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
                found[c, size] = time.perf_counter() - started
                self.engines.settle()
        return found

    def _warm_lines(self, size: int) -> list[int]:
        return self.slices[0] if size == 1 else self.batches[size]

    def _estimate(self, passes: dict[tuple[Contender, int], float]) -> float:
        """Seconds, roughly: a batch of the quality run is taken for the largest that was warmed up."""
        total = 0.0
        for c in self.contenders:
            sizes = [size for size in self.recipe.batch_sizes if (c, size) in passes]
            total += sum(passes[c, size] * self._rounds(c, size) for size in sizes)
            if sizes and not c.again:
                largest = sizes[-1]
                lines = len(self.engines.workload.sources) if largest > 1 else len(self.timed_lines)
                total += passes[c, largest] * lines / len(self._warm_lines(largest))
                total += START_SECONDS if self.recipe.memory else 0.0
        return total

    def _decode(
        self, able: Sequence[Contender], refusals: dict[tuple[str, int | None], str], advance: Callable[[], Any]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, list[int]]]:
        """Outputs and the lines that they are of, by name: those that are greedy again share greedy's. What failed is
        put into `refusals`. Raises Spec2SeqError if our greedy is among it."""
        made, failed = self.engines.decode([c for c in able if not c.again], self.timed_lines, QUALITY_BATCH, advance)
        if self.greedy.name in failed:
            raise Spec2SeqError(failed[self.greedy.name])
        for c in able:
            same = replace(c, again=False).name
            if same in failed:
                refusals[c.name, None] = failed[same]
            else:
                made[c.name] = made[same]
        return {name: output for name, (output, _) in made.items()}, {name: lines for name, (_, lines) in made.items()}

    def _time(self, size: int, refusals: dict, advance: Callable[[], Any]) -> Timed:
        """Interleaved rounds over all that can, a slice of the lines in each; the seconds of a line come from inside of
        the process."""
        present = [c for c, at in self._jobs(refusals) if at == size]
        answers: dict[str, list[dict[str, Any]]] = {c.name: [] for c in present}
        parts = self.slices if size == 1 else [self.batches[size]]

        def call(c: Contender) -> Callable[[], None]:
            found = answers[c.name]
            return lambda: found.append(self.engines.ask(c, "time", parts[len(found) % len(parts)], size))

        def after() -> None:
            advance()
            self.engines.settle()

        rounds = {c.name: self._rounds(c, size) for c in present}
        timings = interleave({c.name: call(c) for c in present}, max(rounds.values()), 0, fewer=rounds, after=after)
        tokens = {name: sum(answer["new_tokens"] for answer in found[-len(parts) :]) for name, found in answers.items()}
        counted = {name: found for name, found in answers.items() if all(one["verifier_calls"] for one in found)}
        per_call = {
            name: sum(one["new_tokens"] for one in found) / sum(one["verifier_calls"] for one in found)
            for name, found in counted.items()
        }
        if size > 1:
            return Timed(timings, tokens, per_call)
        lines = {
            name: [
                [seconds for answer in found[start : start + len(parts)] for seconds in answer["line_seconds"]]
                for start in range(0, len(found), len(parts))
            ]
            for name, found in answers.items()
        }
        return Timed(timings, tokens, per_call, lines, len(parts))

    def _agreement(self, measured: Measured) -> list[dict[str, Any]]:
        """Other engines' greedy against ours: equal lines, and each difference with our logit gap there."""
        worker, found = self.engines.process(self.greedy).worker, []
        for c in self.contenders:
            if c.method != "greedy" or c.again or c == self.greedy or c.name not in measured.outputs:
                continue
            lines, differences = common(measured, self.greedy.name, c.name), []
            for line, (ours, theirs) in lines.items():
                place = first_difference(ours, theirs)
                if place is not None:
                    gap = worker.ask("gap", line=line, prefix=ours[:place])
                    differences.append({"line": line + 1, "token": place + 1, "logit_gap": gap})
            found.append({"engine": c.engine, "dtype": c.dtype, "lines": len(lines),
                          "identical": len(lines) - len(differences), "differences": differences})  # fmt: skip
        return found


def slices(lines: list[int], lengths: Sequence[int]) -> list[list[int]]:
    """The lines dealt into slices of about SLICE, each with short and long sources."""
    by_length = sorted(lines, key=lambda line: (lengths[line], line))
    count = max(1, len(lines) // SLICE)
    return [by_length[start::count] for start in range(count)]
