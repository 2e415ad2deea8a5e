"""Transformers' own generate: greedy, beam search, with an assistant, with prompt lookup."""

import contextlib
import copy
import functools
import time
from collections.abc import Iterator
from typing import Any

import torch
import transformers

from spec2seq.config import check_choice
from spec2seq.evaluation.peers import Job, Run, Workload, batches
from spec2seq.evaluation.timing import set_threads
from spec2seq.models.executor import WEIGHTS
from spec2seq.models.loading import torch_device

METHODS = ("greedy", "beam", "assisted", "lookup")
LOOKUP_TOKENS = 10  # what its documentation uses; without a number there is no prompt lookup


class Transformers:
    """AutoModelForSeq2SeqLM for verifier and little model, as a user of Transformers would call it."""

    def __init__(self, workload: Workload):
        transformers.logging.disable_progress_bar()
        set_threads(workload.threads)
        self.workload = workload
        self.verifier = self._load(workload.models)

    def _load(self, folder) -> Any:
        dtype = WEIGHTS[self.workload.dtype]
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype).eval()
        model.to(torch_device(self.workload.device))  # with the same kinds of attention as ours
        model.generation_config.max_length = None  # or every call warns that max_new_tokens goes first
        return model

    @functools.cached_property
    def little(self) -> tuple[Any, Any]:
        """The assistant, loaded by the first job that wants it, and its generation config as it came."""
        model = self._load(self.workload.little)
        return model, copy.deepcopy(model.generation_config)

    @torch.inference_mode()
    def run(self, job: Job, count: bool = False) -> Run:
        """`parameters` of "assisted" are set on the assistant's generation config, where Transformers reads them."""
        check_choice("method", job.method, METHODS)
        sources, seconds = job.sources(self.workload), []
        sequences: list[list[int]] = [[] for _ in sources]
        options = self._options(job)
        with self._counted(count and job.batch_size == 1 and job.method != "beam") as calls:
            for places in batches(sources, job.batch_size):
                started = time.perf_counter()
                rows = self._generate([sources[place] for place in places], job.cap(self.workload), options)
                for place, row in zip(places, rows, strict=True):
                    sequences[place] = row
                seconds.append(time.perf_counter() - started)
        passes = len(calls) if calls else sum(map(len, sequences)) if job.method == "greedy" else None
        return Run(sequences, seconds if job.batch_size == 1 else [], passes if count else None)

    def _options(self, job: Job) -> dict[str, Any]:
        if job.method == "greedy":
            return {"num_beams": 1} | job.parameters
        if job.method == "beam":
            return {"num_beams": 5, "length_penalty": 1.0, "early_stopping": False} | job.parameters
        if job.method == "lookup":
            return {"num_beams": 1, "prompt_lookup_num_tokens": LOOKUP_TOKENS} | job.parameters
        model, defaults = self.little
        # Transformers adapts thresholds in place; every run starts from the same.
        model.generation_config = copy.deepcopy(defaults)
        for name, value in job.parameters.items():
            setattr(model.generation_config, name, value)
        return {"num_beams": 1, "assistant_model": model}

    def _generate(self, sources: list[list[int]], cap: int, options: dict[str, Any]) -> list[list[int]]:
        """New tokens of a batch, right-padded on the way in, cut behind the first end token on the way out."""
        pad, ends = self.verifier.config.pad_token_id, self.verifier.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        longest = max(map(len, sources))
        ids = torch.tensor([source + [pad] * (longest - len(source)) for source in sources])
        mask = torch.tensor([[1] * len(source) + [0] * (longest - len(source)) for source in sources])
        device = self.workload.device
        made = self.verifier.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), do_sample=False, max_new_tokens=cap, **options
        )
        rows = [row[1:] for row in made.tolist()]  # without the start token
        lengths = [next((n for n, token in enumerate(row, 1) if token in ends), None) for row in rows]
        return [row[:length] for row, length in zip(rows, lengths, strict=True)]

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
