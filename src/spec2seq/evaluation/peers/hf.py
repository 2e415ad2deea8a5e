"""Transformers' own generate, greedy and with an assistant."""

import contextlib
import copy
import time
from collections.abc import Iterator
from typing import Any

import torch

from spec2seq.api import DTYPES
from spec2seq.config import check_choice
from spec2seq.evaluation.peers import Run, Workload
from spec2seq.evaluation.timing import set_threads


class Transformers:
    """AutoModelForSeq2SeqLM for verifier and little model, as a user of Transformers would call it at batch size 1."""

    def __init__(self, workload: Workload):
        import transformers

        set_threads(workload.threads)
        self.workload = workload

        def load(folder):
            model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=DTYPES[workload.dtype]).eval()
            model.generation_config.max_length = None  # or every call warns that max_new_tokens goes first
            return model

        self.verifier, self.little = load(workload.models), load(workload.little)
        self.assistant_defaults = copy.deepcopy(self.little.generation_config)

    @torch.inference_mode()
    def run(self, method: str, parameters: dict[str, Any], count: bool = False) -> Run:
        """`parameters` of "assisted" are set on the assistant's generation config, where Transformers reads them."""
        check_choice("method", method, ("greedy", "assisted"))
        options: dict[str, Any] = {}
        if method == "assisted":
            # Transformers adapts thresholds in place; every run starts from the same.
            self.little.generation_config = copy.deepcopy(self.assistant_defaults)
            for name, value in parameters.items():
                setattr(self.little.generation_config, name, value)
            options["assistant_model"] = self.little
        sequences, seconds = [], []
        with self._counted(count) as calls:
            for source in self.workload.sources:
                started = time.perf_counter()
                ids = torch.tensor([source])
                made = self.verifier.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1,
                    max_new_tokens=self.workload.max_new_tokens, **options,
                )  # fmt: skip
                sequences.append(made[0].tolist()[1:])  # without the start token
                seconds.append(time.perf_counter() - started)
        return Run(sequences, seconds, len(calls) if count else None)

    @contextlib.contextmanager
    def _counted(self, count: bool) -> Iterator[list[None]]:
        """Count the decoder's passes; not while timing."""
        calls: list[None] = []
        if not count:
            yield calls
            return
        handle = self.verifier.get_decoder().register_forward_pre_hook(lambda *_: calls.append(None))
        try:
            yield calls
        finally:
            handle.remove()
