"""The processes of a bench: one for each engine and dtype, asked one after the other."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from spec2seq import Seq2Seq
from spec2seq.errors import Spec2SeqError
from spec2seq.evaluation.bench.recipe import Contender, Models, Recipe
from spec2seq.evaluation.memory import fresh_peaks
from spec2seq.evaluation.peers import Job, Workload, worker
from spec2seq.models.loading import local_folder

PROBES, CLEAR = 7, 3  # rounds in which an engine shows with how many threads it is faster; fewer if each one says so


class Engines:
    """Asks the process of a contender; `missing` has the reasons of those that could not start.

    `single` are the same engines with one thread, and `threads` says which of the two is asked, by engine, dtype and
    batch size; see `choose_threads`.
    """

    def __init__(self, workload: Workload, environment: dict[str, str] | None):
        self.workload, self.environment = workload, environment
        self.workers: dict[tuple[str, str], worker.Worker] = {}
        self.single: dict[tuple[str, str], worker.Worker] = {}
        self.missing: dict[tuple[str, str], str] = {}
        self.threads: dict[tuple[str, str, int], int] = {}
        self.asked: worker.Worker | None = None  # the last one

    def start(self, stack: contextlib.ExitStack, keys: Iterable[tuple[str, str]]) -> None:
        """Start a process for each engine and dtype. Raises Spec2SeqError if ours cannot start."""
        for engine, dtype in keys:
            given = replace(self.workload, dtype=dtype)
            try:
                process = worker.Worker(engine, given, self.environment)
                self.workers[engine, dtype] = stack.enter_context(process)
            except Spec2SeqError as error:
                if engine == "spec2seq":
                    raise
                self.missing[engine, dtype] = str(error)
                continue
            if (self.workload.threads or 1) > 1:
                process = worker.Worker(engine, replace(given, threads=1), self.environment)
                self.single[engine, dtype] = stack.enter_context(process)

    def choose_threads(self, sizes: Iterable[int], lines: list[int]) -> None:
        """Let each engine run with all threads or with one, whichever takes its greedy decoding less time: where cores
        are shared, threads that wait for one another can make a pass several times slower."""
        for size in sizes:
            for (engine, dtype), one in self.single.items():
                job = vars(Job("greedy", {}, lines, size))
                with contextlib.suppress(Spec2SeqError):  # what cannot run says so when it is measured
                    processes = {self.workload.threads: self.workers[engine, dtype], 1: one}
                    seconds: dict[int, list[float]] = {threads: [] for threads in processes}
                    for process in processes.values():
                        process.ask("time", job=job)  # warm
                    for number in range(PROBES):  # in turn: a busy moment hits both
                        if number >= CLEAR and not _overlap(*seconds.values()):
                            break
                        for threads, process in processes.items():
                            seconds[threads].append(self._seconds(process, job))
                    self.threads[engine, dtype, size] = min(processes, key=lambda n: statistics.median(seconds[n]))

    def _seconds(self, process: worker.Worker, job: dict[str, Any]) -> float:
        started = time.perf_counter()
        process.ask("time", job=job)
        took = time.perf_counter() - started
        process.settle()
        return took

    def threads_of(self, engine: str, dtype: str, batch_size: int) -> int | None:
        """How many threads it is given."""
        return self.threads.get((engine, dtype, batch_size), self.workload.threads)

    def worker(self, engine: str, dtype: str, batch_size: int = 1) -> worker.Worker:
        """The process that is asked."""
        one = self.single and self.threads_of(engine, dtype, batch_size) == 1
        return (self.single if one else self.workers)[engine, dtype]

    def ask(self, contender: Contender, do: str, lines: list[int] | None = None, batch_size: int = 1,
            max_new_tokens: int | None = None) -> Any:  # fmt: skip
        """Raises the Spec2SeqError that the process answers."""
        job = Job(contender.method, contender.parameters, lines, batch_size, max_new_tokens)
        self.asked = self.worker(contender.engine, contender.dtype, batch_size)
        return self.asked.ask(do, job=vars(job))

    def settle(self) -> None:
        """Wait until the process that was asked last leaves the cores alone."""
        if self.asked is not None:
            self.asked.settle()

    def decode(
        self, able: Sequence[Contender], lines: list[int], batch_size: int, advance: Callable[[], Any]
    ) -> dict[str, tuple[dict[str, Any], list[int]]]:
        """One decoding by each contender, by its name, with the lines that were decoded: all of them in batches, or
        `lines` one by one where the engine refuses batches. No time is taken, so as many engines as there are threads
        work side by side, each with one."""
        processes = self.workers | self.single
        by_engine: dict[tuple[str, str], list[Contender]] = {}
        for c in able:
            by_engine.setdefault((c.engine, c.dtype), []).append(c)

        def one(key: tuple[str, str]) -> list[tuple[str, tuple[dict[str, Any], list[int]]]]:
            found = []
            for c in by_engine[key]:
                everything = list(range(len(self.workload.sources)))
                job = Job(c.method, c.parameters, None, batch_size)
                try:
                    found.append((c.name, (processes[key].ask("run", job=vars(job)), everything)))
                except Spec2SeqError:
                    job = Job(c.method, c.parameters, lines)
                    found.append((c.name, (processes[key].ask("run", job=vars(job)), lines)))
                advance()
            return found

        with ThreadPoolExecutor(self.workload.threads or 1) as pool:
            return {name: output for found in pool.map(one, by_engine) for name, output in found}

    def peaks(
        self, several: Sequence[Contender], batch_sizes: Iterable[int], advance: Callable[[], Any]
    ) -> dict[str, dict[int, float | None]]:
        """Peak MiB of a fresh process for each contender, by its name and the batch size; see `fresh_peaks`."""

        def one(c: Contender) -> dict[int, float | None]:
            given = replace(self.workload, dtype=c.dtype)
            found = fresh_peaks(c.engine, given, Job(c.method, c.parameters), list(batch_sizes), self.environment)
            advance()
            return found

        with ThreadPoolExecutor(self.workload.threads or 1) as pool:
            return dict(zip([c.name for c in several], pool.map(one, several), strict=True))


def _overlap(some: Sequence[float], others: Sequence[float]) -> bool:
    return min(some) <= max(others) and min(others) <= max(some)


@contextlib.contextmanager
def running(workload: Workload, recipe: Recipe, contenders: Iterable[Contender]) -> Iterator[Engines]:
    """The engines of the contenders, ended on the way out."""
    environment = {} if recipe.openmp == "default" else None
    with contextlib.ExitStack() as stack:
        engines = Engines(workload, environment)
        engines.start(stack, dict.fromkeys((c.engine, c.dtype) for c in contenders))
        yield engines


def make_workload(models: Models, texts: list[str], recipe: Recipe, file: str) -> tuple[Workload, Any]:
    """The workload and the tokenizer. Raises Spec2SeqError for a text that is too long for the model."""
    verifier = local_folder(models.verifier)
    model = Seq2Seq.from_pretrained(verifier, prefix=recipe.prefix)
    sources = [model.source_ids(text, f"{file}: pair {number}") for number, text in enumerate(texts, 1)]
    given = {"little": models.little, "drafter": models.drafter}
    beside = {part: str(local_folder(name)) for part, name in given.items() if name is not None}
    return (
        Workload(verifier, sources, model.max_new_tokens(), recipe.threads, recipe.dtype[0],
                 recipe.device, beside),
        model.tokenizer,
    )  # fmt: skip
