"""This package's own engine."""

import contextlib
import functools
import time
from typing import Any

import transformers

from spec2seq import Assisted, Beam, BiLD, BlockDrafter, Greedy, Lookup, Seq2Seq, SpecDec, UsageError
from spec2seq.api import Method
from spec2seq.config import check_choice
from spec2seq.decoding.stats import Stats
from spec2seq.errors import Spec2SeqError
from spec2seq.evaluation.costs import bandwidth, pass_bytes, pass_seconds
from spec2seq.evaluation.lossless import next_logits
from spec2seq.evaluation.memory import tensor_bytes
from spec2seq.evaluation.peers import Job, Run, Workload
from spec2seq.evaluation.timing import set_threads
from spec2seq.pairing import check_pair

METHODS = ("greedy", "beam", "specdec", "assisted", "bild", "lookup")
BEAM = functools.partial(Beam, num_beams=5, length_penalty=1.0, early_stopping=False)  # of every engine
PRESETS: dict[str, Any] = {
    "greedy": Greedy, "beam": BEAM, "specdec": SpecDec, "assisted": Assisted, "bild": BiLD, "lookup": Lookup
}  # fmt: skip


class Ours:
    """Verifier and drafters, fed with ids and returning ids: no engine is timed with its tokenizer.

    A drafter is loaded by the first method that needs it. A method keeps what its length rule has learned from run to
    run, as in a server.
    """

    def __init__(self, workload: Workload):
        transformers.logging.disable_progress_bar()
        set_threads(workload.threads)
        self.workload = workload
        self.loaded = self._load(workload.models)
        self.tokenizer = self.loaded.tokenizer
        self.verifier = Seq2Seq(self.loaded.model, self.loaded.config, None, self.loaded.generation_config)
        self.made: dict[str, Method] = {}

    def _load(self, folder) -> Seq2Seq:
        return Seq2Seq.from_pretrained(folder, self.workload.dtype, self.workload.device)

    @functools.cached_property
    def drafter(self) -> Any:
        """The little model. Raises Spec2SeqError if there is none or it does not fit."""
        drafter = self._load(self.workload.little).drafter()
        check_pair(self.loaded, drafter)
        return drafter

    @functools.cached_property
    def blocks(self) -> Any:
        """The block drafter. Raises UsageError if there is none."""
        if self.workload.drafter is None:
            raise UsageError("drafter/config.json: no block drafter lies beside the verifier")
        return BlockDrafter.from_pretrained(self.workload.drafter, self.workload.dtype, self.workload.device)

    def method(self, name: str, parameters: dict[str, Any]) -> Method:
        """The preset of a name with its parameters as the user writes them."""
        check_choice("method", name, METHODS)
        key = f"{name} {parameters}"
        if key not in self.made:
            drafters = {"specdec": "blocks", "assisted": "drafter", "bild": "drafter"}
            given = [getattr(self, drafters[name])] if name in drafters else []
            self.made[key] = PRESETS[name](*given, **parameters)
        return self.made[key]

    def run(self, job: Job, count: bool = False) -> Run:
        """With `count`, `extra` holds the counts of the run, who wrote each token and the passes of each line."""
        stats, sequences, seconds, traces, calls = Stats(), [], [], [], []
        sources, method = job.sources(self.workload), self.method(job.method, job.parameters)
        how = {"max_new_tokens": job.cap(self.workload), "batch_size": job.batch_size, "trace": count}
        if job.batch_size == 1:
            rows = self.verifier.stream(sources, method, stats=stats, **how)
        else:
            done = self.verifier.generate(sources, method, **how)
            rows, stats = iter(done.rows), done.stats
        started = time.perf_counter()
        for row in rows:
            ended = time.perf_counter()
            seconds.append(ended - started)
            sequences.append(row.tokens)
            if count:
                traces.append(row.trace)
                calls.append(row.counts.verifier_calls)
            started = time.perf_counter()
        extra = {"stats": stats.as_dict()} | ({"traces": traces, "calls": calls} if count else {})
        return Run(sequences, seconds if job.batch_size == 1 else [], stats.verifier_calls, extra)

    def profile(self, job: Job) -> dict[str, float]:
        """Milliseconds per new token of each phase, "rest" for the loop around them, and in all."""
        stats = self.verifier.generate(
            job.sources(self.workload), self.method(job.method, job.parameters), batch_size=job.batch_size,
            profile=True, max_new_tokens=job.cap(self.workload),
        ).stats  # fmt: skip
        phases = dict(stats.phases)
        phases["rest"] = stats.seconds - sum(phases.values())
        phases["all"] = stats.seconds
        return {name: 1000 * seconds / stats.new_tokens for name, seconds in phases.items()}

    def costs(self, batch_sizes: list[int]) -> dict[str, Any]:
        """Milliseconds of a verifier pass by batch size and number of tokens, and what the memory allows at least:
        bytes of weights that a pass reads, bytes per second that this machine reads, and the quotient."""
        rate, weights = bandwidth(self.workload.device), pass_bytes(self.verifier.model)
        verifier = {
            str(rows): {
                str(length): 1000 * seconds for length, seconds in pass_seconds(self.verifier.model, rows).items()
            }
            for rows in batch_sizes
        }
        little = None
        with contextlib.suppress(Spec2SeqError):  # none that fits; the rows of its methods say so
            little = 1000 * pass_seconds(self.drafter.model, 1, (1,))[1]
        return {"verifier_ms": verifier, "little_ms": little, "bytes_per_second": rate, "weight_bytes": weights,
                "floor_ms": 1000 * weights / rate}  # fmt: skip

    def sizes(self) -> dict[str, Any]:
        """`tensor_bytes` of the models."""
        return tensor_bytes(self)

    def gap(self, line: int, prefix: list[int]) -> float:
        """By how much the likeliest next token leads the second after `prefix`, in logits: near 0 it is a tie."""
        first, second = next_logits(self.verifier, self.workload.sources[line], prefix).topk(2).values.tolist()
        return first - second
