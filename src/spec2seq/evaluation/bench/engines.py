"""The processes of a bench: one for each engine, dtype and way to run, asked one after the other."""

import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from spec2seq import Seq2Seq
from spec2seq.errors import Spec2SeqError
from spec2seq.evaluation.bench.recipe import Contender, Models, Recipe
from spec2seq.evaluation.manifest import cpu_name
from spec2seq.evaluation.memory import fresh_peaks
from spec2seq.evaluation.peers import Job, Workload, worker
from spec2seq.evaluation.timing import set_threads
from spec2seq.models.loading import local_folder

PROBES, CLEAR = 7, 3  # rounds in which an engine shows in which way it is fastest; fewer if each one says so
MKL = {"CT2_USE_MKL": "1"}


@dataclass(frozen=True)
class Process:
    """A running engine, and with how many threads and what of its own in the environment it was started."""

    worker: worker.Worker
    threads: int | None
    environment: dict[str, str]


class Engines:
    """Asks the process of a contender; `missing` has the reasons of those that could not start.

    `processes` are the ways in which an engine can run in a dtype, all threads and nothing of its own first, and
    `chosen` is the one that is asked, by engine, dtype, batch size and search; see `choose`.
    """

    def __init__(self, workload: Workload, environment: dict[str, str]):
        self.workload, self.environment = workload, environment
        self.processes: dict[tuple[str, str], list[Process]] = {}
        self.chosen: dict[tuple[str, str, int, str], Process] = {}
        self.missing: dict[tuple[str, str], str] = {}
        self.asked: Process | None = None  # the last one

    def start(self, stack: contextlib.ExitStack, keys: Iterable[tuple[str, str]]) -> None:
        """Start the processes of each engine and dtype. Raises Spec2SeqError if ours cannot start."""
        for engine, dtype in keys:
            started = []
            try:
                for threads, own in ways(engine, self.workload):
                    given = replace(self.workload, dtype=dtype, threads=threads)
                    process = worker.Worker(engine, given, self.environment | own)
                    started.append(Process(stack.enter_context(process), threads, own))
            except Spec2SeqError as error:
                if engine == "spec2seq":
                    raise
                self.missing[engine, dtype] = str(error)
                continue
            self.processes[engine, dtype] = started

    def choose(self, contenders: Iterable[Contender], size: int, lines: list[int]) -> None:
        """Let each engine run in the way in which its greedy decoding takes the least time, and beam search in that of
        its own: where cores are shared, threads that wait for one another can make a pass several times slower."""
        for engine, dtype, search in dict.fromkeys((c.engine, c.dtype, _search(c)) for c in contenders):
            processes = self.processes.get((engine, dtype), [])
            if len(processes) < 2:
                continue
            job = vars(Job(search, {}, lines, size))
            with contextlib.suppress(Spec2SeqError):  # what cannot run says so when it is measured
                for process in processes:
                    process.worker.ask("time", job=job)  # warm
                seconds: list[list[float]] = [[] for _ in processes]
                for number in range(PROBES):  # in turn: a busy moment hits all
                    if number >= CLEAR and _clear(seconds):
                        break
                    for found, process in zip(seconds, processes, strict=True):
                        found.append(self._seconds(process.worker, job))
                medians = list(map(statistics.median, seconds))
                self.chosen[engine, dtype, size, search] = processes[medians.index(min(medians))]

    def _seconds(self, process: worker.Worker, job: dict[str, Any]) -> float:
        started = time.perf_counter()
        process.ask("time", job=job)
        took = time.perf_counter() - started
        process.settle()
        return took

    def process(self, contender: Contender, batch_size: int = 1) -> Process:
        """The one that is asked."""
        engine, dtype = contender.engine, contender.dtype
        default = self.processes[engine, dtype][0]
        return self.chosen.get((engine, dtype, batch_size, _search(contender)), default)

    def ask(self, contender: Contender, do: str, lines: list[int] | None = None, batch_size: int = 1) -> Any:
        """Raises the Spec2SeqError that the process answers."""
        job = Job(contender.method, contender.parameters, lines, batch_size)
        self.asked = self.process(contender, batch_size)
        return self.asked.worker.ask(do, job=vars(job))

    def settle(self) -> None:
        """Wait until the process that was asked last leaves the cores alone."""
        if self.asked is not None:
            self.asked.worker.settle()

    def decode(
        self, able: Sequence[Contender], lines: list[int], batch_size: int, advance: Callable[[], Any]
    ) -> tuple[dict[str, tuple[dict[str, Any], list[int]]], dict[str, str]]:
        """One decoding by each contender, by its name, with the lines that were decoded: all of them in batches, or
        `lines` one by one where the engine refuses batches; and why others have none. No time is taken, so as many
        engines as there are threads work side by side, each with one."""
        made: dict[str, tuple[dict[str, Any], list[int]]] = {}
        failed: dict[str, str] = {}
        by_engine: dict[tuple[str, str], list[Contender]] = {}
        for c in able:
            by_engine.setdefault((c.engine, c.dtype), []).append(c)

        def all_of(key: tuple[str, str]) -> None:
            for c in by_engine[key]:
                chosen = self.process(c)
                alone = (p for p in self.processes[key] if (p.threads, p.environment) == (1, chosen.environment))
                process, everything = next(alone, chosen).worker, list(range(len(self.workload.sources)))
                for some, size in ((everything, batch_size), (lines, 1)):
                    try:
                        job = Job(c.method, c.parameters, some, size)
                        made[c.name] = (process.ask("run", job=vars(job)), some)
                        failed.pop(c.name, None)
                        break
                    except Spec2SeqError as error:
                        failed[c.name] = str(error)
                advance()

        with ThreadPoolExecutor(self.workload.threads or 1) as pool:
            list(pool.map(all_of, by_engine))
        return made, failed

    def peaks(
        self, several: Sequence[Contender], batch_sizes: Iterable[int], advance: Callable[[], Any]
    ) -> dict[str, dict[int, float | None]]:
        """Peak MiB of a fresh process for each contender, by its name and the batch size; see `fresh_peaks`."""

        def one(c: Contender) -> dict[int, float | None]:
            given, environment = replace(self.workload, dtype=c.dtype), self.environment | self.process(c).environment
            found = fresh_peaks(c.engine, given, Job(c.method, c.parameters), list(batch_sizes), environment)
            advance()
            return found

        with ThreadPoolExecutor(self.workload.threads or 1) as pool:
            return dict(zip([c.name for c in several], pool.map(one, several), strict=True))


def ways(engine: str, workload: Workload) -> list[tuple[int | None, dict[str, str]]]:
    """Threads and environment of the processes among which `choose` may choose."""
    counts = [workload.threads, 1] if (workload.threads or 1) > 1 else [workload.threads]
    x86 = platform.machine() in ("x86_64", "AMD64")
    # CTranslate2 multiplies with MKL on Intel's processors; on other x86 ones it has to be told, and may be faster.
    told = engine == "ctranslate2" and workload.device == "cpu" and x86 and "Intel" not in cpu_name()
    return [(threads, own) for own in ([{}, MKL] if told else [{}]) for threads in counts]


def _search(contender: Contender) -> str:
    """What its way of running is chosen by: what drafts has passes like those of greedy decoding."""
    return "beam" if contender.method == "beam" else "greedy"


def _clear(seconds: Sequence[Sequence[float]]) -> bool:
    """Whether one was faster each time than every other."""
    best, *others = sorted(seconds, key=statistics.median)
    return all(max(best) < min(other) for other in others)


@contextlib.contextmanager
def running(workload: Workload, recipe: Recipe, contenders: Iterable[Contender]) -> Iterator[Engines]:
    """The engines of the contenders, ended on the way out."""
    environment = {} if recipe.openmp == "default" else worker.ENVIRONMENT
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
    settings = json.loads(model.generation_config.to_json_string())
    # Left alone, CTranslate2 takes four, the others all; what a GPU's host has is of no matter.
    threads = recipe.threads or (set_threads(None) if recipe.device == "cpu" else None)
    return (
        Workload(verifier, sources, model.max_new_tokens(), threads, recipe.dtype[0], recipe.device, beside, settings),
        model.tokenizer,
    )
