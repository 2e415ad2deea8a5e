"""Memory: bytes of tensors, and the peak of fresh processes that do nothing but one method of one engine."""

import contextlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spec2seq.errors import Spec2SeqError
from spec2seq.models.cache import Cache
from spec2seq.models.quantize import weights_of

if TYPE_CHECKING:
    from spec2seq.evaluation.peers import Job, Workload
    from spec2seq.evaluation.peers.ours import Ours

SOURCE, NEW_TOKENS = 32, 32


def tensor_bytes(ours: "Ours") -> dict[str, Any]:
    """Parameters and bytes of the weights of the verifier and the drafters that lie beside it and fit, and bytes of
    their caches for one row of 32 source and 32 new tokens."""
    models, beside = {"verifier": ours.verifier.model}, ours.workload.folders()
    for name, drafter in (("little", "drafter"), ("drafter", "blocks")):
        if name in beside:
            with contextlib.suppress(Spec2SeqError):  # the rows of its methods say why
                models[name] = getattr(ours, drafter).model
    found = {}
    for name, model in models.items():
        stack = getattr(model, "stack", None) or model.architecture.decoder  # of a drafter, or a model's
        # One of its own, not what has grown in another call.
        cache = Cache(stack, 1, model.dtype, model.device, source_dtype=model.new_cache(1).source.dtype)
        cache.reserve(NEW_TOKENS)
        cache.reserve_source(SOURCE)
        weights = weights_of(model)
        # A shortlist's rows of the head are copies: bytes, but no more parameters.
        whole = ours.drafter.whole if name == "little" else None
        found[name] = {
            "parameters": sum(weight.numel() for weight in (weights if whole is None else weights_of(whole))),
            "weight_bytes": sum(weight.nbytes for weight in weights),
            "cache_bytes": cache.nbytes,
        }
    return found


def fresh_peaks(
    engine: str, workload: "Workload", job: "Job", batch_sizes: Sequence[int], environment: dict[str, str] | None = None
) -> dict[int, float | None]:
    """Peak MiB of a fresh process that loads the engine and runs the job's method on one batch, by batch size.

    The first lines of the workload, at most 32 new tokens. One process does all batch sizes, the smallest first: a peak
    only grows. Resident memory (Linux only), or the device's own on a GPU; None where that is not known.
    """
    from spec2seq.evaluation.peers import worker

    peaks = {}
    with worker.Worker(engine, workload, environment) as process:
        for size in sorted(batch_sizes):
            lines = [place % len(workload.sources) for place in range(size)]
            asked = replace(job, lines=lines, batch_size=size, max_new_tokens=min(NEW_TOKENS, workload.max_new_tokens))
            try:
                process.ask("time", job=vars(asked))
                peaks[size] = process.ask("peak")
            except Spec2SeqError:  # a batch that the engine refuses
                peaks[size] = None
    return peaks


def peak_mb(device: str) -> float | None:
    """The peak of this process so far in MiB: of PyTorch on the device if that is a GPU, else resident.

    VmHWM, not getrusage: what that reports begins with the peak of the process that started this one.
    """
    if device != "cpu":
        import sys

        torch = sys.modules.get("torch")  # CTranslate2 does without, and its device memory is not known
        return torch.cuda.max_memory_allocated(device) / 2**20 if torch else None
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else None
