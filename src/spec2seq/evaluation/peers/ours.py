"""This package's own engine."""

import time
from collections.abc import Callable
from typing import Any

from spec2seq import Assisted, BiLD, BlockDrafter, Greedy, Lookup, Seq2Seq, SpecDec, Speculative, UsageError
from spec2seq.config import check_choice
from spec2seq.decoding.stats import Stats
from spec2seq.evaluation.costs import pass_seconds
from spec2seq.evaluation.lossless import next_logits
from spec2seq.evaluation.peers import Run, Workload
from spec2seq.evaluation.timing import set_threads
from spec2seq.pairing import check_pair

METHODS = ("greedy", "specdec", "assisted", "bild", "lookup")


class Ours:
    """Verifier and drafters, fed with ids and returning ids: no engine is timed with its tokenizer.

    A method keeps what its length rule has learned from run to run, as in a server.
    """

    def __init__(self, workload: Workload):
        set_threads(workload.threads)
        self.workload = workload
        loaded = Seq2Seq.from_pretrained(workload.models, workload.dtype)
        little = Seq2Seq.from_pretrained(workload.little, workload.dtype)
        self.tokenizer = loaded.tokenizer
        self.verifier = Seq2Seq(loaded.model, loaded.config, None, loaded.generation_config)
        self.drafter = little.drafter()
        check_pair(loaded, self.drafter)
        self.blocks = workload.drafter and BlockDrafter.from_pretrained(workload.drafter, workload.dtype)
        self.made: dict[str, Speculative] = {}

    def method(self, name: str, parameters: dict[str, Any]) -> Speculative:
        """The preset of a name with its parameters as the user writes them."""
        check_choice("method", name, METHODS)
        key = f"{name} {parameters}"
        if key not in self.made:
            self.made[key] = self._make(name, parameters)
        return self.made[key]

    def _make(self, name: str, parameters: dict[str, Any]) -> Speculative:
        if name == "specdec" and self.blocks is None:
            raise UsageError(f"{self.workload.models / 'drafter'}: no block drafter here")
        drafters = {"specdec": self.blocks, "assisted": self.drafter, "bild": self.drafter}
        presets = {"specdec": SpecDec, "assisted": Assisted, "bild": BiLD, "greedy": Greedy, "lookup": Lookup}
        return presets[name](*([drafters[name]] if name in drafters else []), **parameters)

    def translate(self, method: str, parameters: dict[str, Any], sources: list[list[int]], batch_size: int = 16) -> Run:
        """`sources` in batches, not timed, with the counts of the run and who wrote each token."""
        done = self.verifier.generate(
            sources, self.method(method, parameters), max_new_tokens=self.workload.max_new_tokens,
            batch_size=batch_size, trace=True,
        )  # fmt: skip
        extra = {"stats": done.stats.as_dict(), "traces": [row.trace for row in done.rows],
                 "calls": [row.counts.verifier_calls for row in done.rows]}  # fmt: skip
        return Run(done.sequences, [], done.stats.verifier_calls, extra)

    def run(
        self,
        method: str,
        parameters: dict[str, Any],
        count: bool = False,
        *,
        sources: list[list[int]] | None = None,
        after: Callable[[], Any] | None = None,
    ) -> Run:
        """One pass over `sources` (the workload's by default) at batch size 1. `extra` holds the counts of the run."""
        stats, seconds, sequences = Stats(), [], []
        rows = self.verifier.stream(
            self.workload.sources if sources is None else sources, self.method(method, parameters), stats=stats,
            max_new_tokens=self.workload.max_new_tokens, batch_size=1,
        )  # fmt: skip
        started = time.perf_counter()
        for row in rows:
            ended = time.perf_counter()
            seconds.append(ended - started)
            sequences.append(row.tokens)
            if after is not None:
                after()
            started = time.perf_counter()
        return Run(sequences, seconds, stats.verifier_calls, {"stats": stats.as_dict()})

    def profile(self, method: str, parameters: dict[str, Any]) -> dict[str, float]:
        """Milliseconds per new token of each phase, "rest" for the loop around them, and in all."""
        stats = self.verifier.generate(
            self.workload.sources, self.method(method, parameters), batch_size=1, profile=True,
            max_new_tokens=self.workload.max_new_tokens,
        ).stats  # fmt: skip
        phases = dict(stats.phases)
        phases["rest"] = stats.seconds - sum(phases.values())
        phases["all"] = stats.seconds
        return {name: 1000 * seconds / stats.new_tokens for name, seconds in phases.items()}

    def costs(self) -> dict[str, Any]:
        """Milliseconds of a verifier pass by its number of tokens, and of a pass of the little model, batch size 1."""
        verifier, little = pass_seconds(self.verifier.model, 1), pass_seconds(self.drafter.model, 1, (1,))
        return {
            "verifier_ms": {str(length): 1000 * seconds for length, seconds in verifier.items()},
            "little_ms": 1000 * little[1],
        }

    def gap(self, line: int, prefix: list[int]) -> float:
        """By how much the likeliest next token leads the second after `prefix`, in logits: near 0 it is a tie."""
        first, second = next_logits(self.verifier, self.workload.sources[line], prefix).topk(2).values.tolist()
        return first - second
