"""Memory of the verifier alone and with the block drafter: bytes of tensors, and the peak of fresh processes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from spec2seq.errors import Spec2SeqError
from spec2seq.evaluation.peers.ours import Ours

BATCH_SIZES = (1, 4, 8, 16, 32)
SOURCE, NEW_TOKENS = 32, 32
# VmHWM, not getrusage: what that reports begins with the peak of the process that started this one.
CHILD = """
import json, re, sys
import torch
from spec2seq import BlockDrafter, Greedy, Seq2Seq, SpecDec
models, threads, batch_size, method, source, new = json.loads(sys.argv[1])
torch.set_num_threads(threads)
model = Seq2Seq.from_pretrained(models)
how = Greedy() if method == "greedy" else SpecDec(BlockDrafter.from_pretrained(models + "/drafter"), 4)
a = model.model.architecture
ids = [[5 + i % (a.vocabulary - 10)] * (source - 1) + [a.eos_token_id] for i in range(batch_size)]
model.generate(ids, how, batch_size=batch_size, max_new_tokens=new)
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def tensor_bytes(ours: Ours) -> dict[str, Any]:
    """Parameters and bytes of the weights of verifier and drafter, and of their caches for one row of 32 tokens."""
    found = {}
    for name, model in (("verifier", ours.verifier.model), ("drafter", ours.blocks.model)):
        cache = model.new_cache(1)
        cache.reserve(NEW_TOKENS)
        cache.reserve_source(SOURCE)
        weights = {id(weight): weight for weight in model.parameters()}.values()
        found[name] = {
            "parameters": sum(weight.numel() for weight in weights),
            "weight_bytes": sum(weight.nbytes for weight in weights),
            "cache_bytes": cache.nbytes,
        }
    return found


def fresh_memory(models: Path, threads: int) -> list[dict[str, Any]]:
    """Peak resident MiB of a process that loads the model and generates one batch, by batch size. Linux only."""
    rows = []
    for batch_size in BATCH_SIZES:
        row: dict[str, Any] = {"batch_size": batch_size}
        for method in ("greedy", "specdec"):
            given = json.dumps([str(models), threads, batch_size, method, SOURCE, NEW_TOKENS])
            done = subprocess.run([sys.executable, "-c", CHILD, given], capture_output=True, text=True)
            if done.returncode:
                last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
                raise Spec2SeqError(f"the process for batch size {batch_size}, {method}, failed: {last[0]}")
            row[method] = int(done.stdout.split()[-1]) / 1024
        rows.append(row)
    return rows
