"""What `spec2seq bench` leaves out of a GPU: passes beside what its memory allows, launches, texts of a fixed length,
equal tokens, memory.

python -m spec2seq.evaluation.gpu --out docs/results/gpu

Called again, it goes on with the parts that are missing there; without results.json it begins anew.
"""

import argparse
import functools
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import BartConfig, MarianConfig, PretrainedConfig

from spec2seq.api import Method, Seq2Seq
from spec2seq.config import check_range
from spec2seq.decoding.block_drafters import BlockDrafter
from spec2seq.decoding.loop import Engine
from spec2seq.decoding.methods import Greedy, SpecDec
from spec2seq.decoding.stats import Stats
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.evaluation import memory
from spec2seq.evaluation.bench.engines import make_workload
from spec2seq.evaluation.bench.recipe import Models, Recipe
from spec2seq.evaluation.command import run_main
from spec2seq.evaluation.costs import bandwidth, pass_bytes, wait
from spec2seq.evaluation.gpu_page import page
from spec2seq.evaluation.lossless import compare_with_greedy, greedy_outputs
from spec2seq.evaluation.manifest import manifest
from spec2seq.evaluation.peers import Job
from spec2seq.evaluation.random_models import random_drafter, random_model
from spec2seq.evaluation.sample import committed_sample
from spec2seq.files import read_json, write_json, write_text
from spec2seq.models.loading import torch_device

LARGE = {}  # BartConfig's own sizes are BART-large's
BASE = {"d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048,
        "encoder_attention_heads": 8, "decoder_attention_heads": 8, "vocab_size": 32000, "pad_token_id": 31999,
        "decoder_start_token_id": 31999, "eos_token_id": 0, "max_position_embeddings": 512}  # fmt: skip
SHORTLIST = 3000
BLOCK = 6  # tokens that the random drafters are shaped for
BATCH, INPUT, OUTPUT = 32, 400, 128  # tokens, of TensorRT-LLM's published time
SENTENCE = 25  # tokens of a source and of its output
DRAFTS = (0, 3, BLOCK)
REPLAYS, ITERATIONS = 50, 8
DTYPE = "bfloat16"
LINES, BATCH_SIZES = 200, (1, 8)  # of the comparison of token ids
MEMORY_SIZES = (1, 4, 8, 16, 32)


def fixed_length(model: Seq2Seq, method: Method, sources: list[list[int]], tokens: int) -> tuple[float, Stats]:
    """Seconds that all sources together take for outputs of just so many tokens, encoding included, and counts."""
    engine = Engine(model.model, method, len(sources), eos_token_ids=(-1,))
    for source in sources:
        engine.submit(source, tokens)
    wait(model.model.device)
    started = time.perf_counter()
    while engine.busy:
        engine.step()
    wait(model.model.device)
    return time.perf_counter() - started, engine.stats


def median_time(rounds: int, call: Callable[[], tuple[float, Stats]]) -> tuple[float, Stats]:
    """The median of so many calls after two, in which graphs are captured; and the counts of the last."""
    found = [call() for _ in range(rounds + 2)]
    return statistics.median(seconds for seconds, _ in found[2:]), found[-1][1]


def large_pass(model: Seq2Seq, drafter: Any, rate: float) -> list[dict[str, Any]]:
    """An iteration of one row on its own, replayed without reading it: milliseconds, and those that the weights and the
    cache take at least at the rate at which the device reads."""
    made = []
    for k in DRAFTS:
        engine = _running(model, Greedy() if k == 0 else SpecDec(drafter, k), 1)
        loop, shape = engine.native, engine.native.shape(k)
        seconds = _replayed(model, loop, shape)
        size = pass_bytes(model.model) - _admission_bytes(model.model.decoder.layers) + _cache_bytes(loop.cache, shape)
        if k:  # the slots' tokens are chosen one after the other
            layers = drafter.model.layers
            size += sum(weight.nbytes for weight in layers.parameters()) - _admission_bytes(layers)
            size += k * loop.session.head.weight.nbytes + _cache_bytes(loop.session.cache, shape)
        floor = size / rate
        made.append({"k": k, "ms": 1000 * seconds, "bytes": size, "floor_ms": 1000 * floor, "ratio": seconds / floor})
    return made


def launches(model: Seq2Seq, drafter: Any) -> list[dict[str, Any]]:
    """What the host asks of the device in an iteration, by kind, with graphs and without."""
    made = []
    for graphs in (True, False):
        model.model.graphs = graphs
        for k in DRAFTS[:2]:
            engine = _running(model, Greedy() if k == 0 else SpecDec(drafter, k), 1)
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (model.model.device.type == "cuda")
            with profile(activities=activities) as found:
                for _ in range(ITERATIONS):
                    engine.step()
                wait(model.model.device)
            calls = {item.key: item.count / ITERATIONS for item in found.key_averages()}
            asked = {name: count for name, count in calls.items() if name.startswith(("cuda", "cuLaunch"))}
            operators = sum(count for name, count in calls.items() if name.startswith("aten::"))
            made.append({"graphs": graphs, "k": k, "calls": asked, "operators": operators})
    model.model.graphs = True
    return made


def sentence(model: Seq2Seq, drafter: Any, rounds: int, tokens_per_call: float) -> dict[str, Any]:
    """A sentence by greedy decoding, and by SpecDec as if so many tokens came of a pass: a random drafter is never
    right, so an iteration is measured, and the iterations are computed."""
    source = _sources(model, 1, SENTENCE)
    first, _ = median_time(rounds, lambda: fixed_length(model, Greedy(), source, 1))
    greedy, _ = median_time(rounds, lambda: fixed_length(model, Greedy(), source, SENTENCE))
    method, passes = SpecDec(drafter, DRAFTS[1]), math.ceil(SENTENCE / tokens_per_call)
    seconds, stats = median_time(rounds, lambda: fixed_length(model, method, source, SENTENCE))
    iteration = (seconds - first) / max(1, stats.verifier_passes - 1)
    return {"tokens": SENTENCE, "first_ms": 1000 * first, "greedy_ms": 1000 * greedy, "k": DRAFTS[1],
            "iteration_ms": 1000 * iteration, "tokens_per_call": tokens_per_call, "passes": passes,
            "specdec_ms": 1000 * (first + (passes - 1) * iteration)}  # fmt: skip


def batch(model: Seq2Seq, rounds: int) -> dict[str, Any]:
    """Greedy decoding of a batch of long sources, to a fixed length."""
    sources = _sources(model, BATCH, INPUT)
    seconds, _ = median_time(rounds, lambda: fixed_length(model, Greedy(), sources, OUTPUT))
    return {"batch_size": BATCH, "input": INPUT, "output": OUTPUT, "ms": 1000 * seconds,
            "tokens_per_second": BATCH * OUTPUT / seconds}  # fmt: skip


def equality(models: Path, device: str) -> list[dict[str, Any]]:
    """Token ids of the bundled models: float32 with graphs against float32 without; the half precision's SpecDec
    against its own greedy, each line alone. Differences are listed, and whether rounding explains them."""
    made = []
    for dtype in ("float32", DTYPE):
        model = Seq2Seq.from_pretrained(models, dtype, device)
        block = BlockDrafter.from_pretrained(models / "drafter", dtype, device)
        sources = [model.source_ids(pair.source, "the sample") for pair in committed_sample()[:LINES]]
        methods = {"greedy": Greedy(), "specdec": SpecDec(block, 3)}
        eager = Seq2Seq.from_pretrained(models, dtype, device, "torch") if dtype == "float32" else model
        wanted = greedy_outputs(eager, sources)
        for name, method in methods.items():
            for size in BATCH_SIZES:
                found = compare_with_greedy(model, sources, method, greedy=wanted, batch_size=size)
                made.append({"dtype": dtype, "method": name, "batch_size": size} | found.as_dict())
    return made


def peaks(models: Path, device: str) -> list[dict[str, Any]]:
    """Peak MiB of the device's memory by batch size, in processes of their own: greedy, SpecDec and the difference."""
    texts = [pair.source for pair in committed_sample()]
    workload, _ = make_workload(Models(str(models)), texts, Recipe(device=device), "sample")
    jobs = Job("greedy"), Job("specdec", {"block_size": DRAFTS[1]})  # an adaptive one would measure costs, too
    found = {job.method: memory.fresh_peaks("spec2seq", workload, job, MEMORY_SIZES) for job in jobs}
    return [
        {"batch_size": size, "greedy": found["greedy"][size], "specdec": found["specdec"][size]}
        for size in MEMORY_SIZES
    ]


def parts(models: Path, device: str, rounds: int, found: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """What makes each part of results.json, in this order; some need those in `found` that come before them."""
    place, dtype = torch_device(device), getattr(torch, DTYPE)

    @functools.cache
    def shape(config: type[PretrainedConfig]) -> tuple[Seq2Seq, BlockDrafter]:
        model = random_model(config(**(LARGE if config is BartConfig else BASE)), dtype, place)
        return model, random_drafter(model, BLOCK, SHORTLIST)

    def tokens_per_call() -> float:
        lossless = next(row for row in found["equality"] if row["method"] == "specdec")
        return lossless["stats"]["tokens_per_verifier_call"]

    return {
        "bytes_per_second": lambda: bandwidth(device),
        "equality": lambda: equality(models, device),
        "sentence": lambda: sentence(*shape(MarianConfig), rounds, tokens_per_call()),
        "pass": lambda: large_pass(*shape(BartConfig), found["bytes_per_second"]),
        "batch": lambda: batch(shape(BartConfig)[0], rounds),
        "memory": lambda: peaks(models, device),
        "launches": lambda: launches(*shape(MarianConfig)),  # last: what runs after a profiler is slower
    }


def _running(model: Seq2Seq, method: Method, rows: int) -> Engine:
    """An engine in the middle of its rows, none of which ends."""
    engine = Engine(model.model, method, rows, eos_token_ids=(-1,))
    for source in _sources(model, rows, SENTENCE):
        engine.submit(source, 16 * SENTENCE)
    for _ in range(3):
        engine.step()
    return engine


@torch.inference_mode()
def _replayed(model: Seq2Seq, loop: Any, shape: Any) -> float:
    """Seconds of an iteration on the device, the mean of many in a row."""
    for _ in range(3):
        loop.launch(shape)
    wait(model.model.device)
    started = time.perf_counter()
    for _ in range(REPLAYS):
        loop.launch(shape)
    wait(model.model.device)
    return (time.perf_counter() - started) / REPLAYS


def _admission_bytes(layers: Any) -> int:
    """Weights that are read once a source, not in a pass."""
    return sum(weight.nbytes for layer in layers for weight in layer.cross_key_value.parameters())


def _cache_bytes(cache: Any, shape: Any) -> int:
    """What a pass of this shape reads of a cache."""
    own = cache.own[:, :, : shape.rows, :, : shape.horizon].nbytes
    return own + cache.source[:, :, : shape.rows, :, : shape.source].nbytes


def _sources(model: Seq2Seq, rows: int, tokens: int) -> list[list[int]]:
    words = torch.Generator().manual_seed(0)
    vocabulary = model.model.architecture.vocabulary
    return torch.randint(5, vocabulary - 5, (rows, tokens), generator=words).tolist()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what results.json lacks; write it and report.md after each part. Raises Spec2SeqError for parts that
    failed, after all others."""
    parser = argparse.ArgumentParser(prog="python -m spec2seq.evaluation.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results/gpu"))
    parser.add_argument("--models", type=Path, default=Path("models/ende"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args(arguments)
    check_range("rounds", asked.rounds, low=1)
    torch_device(asked.device)  # before anything is loaded
    command = f"python -m spec2seq.evaluation.gpu --rounds {asked.rounds}"
    facts = manifest(command, {"verifier": asked.models, "drafter": asked.models / "drafter"}, DTYPE, None)
    results, report = asked.out / "results.json", asked.out / "report.md"
    found = read_json(results) if results.is_file() else {"revisions": []}
    if found.get("manifest", facts)["gpu"] != facts["gpu"] or found.get("rounds", asked.rounds) != asked.rounds:
        raise UsageError(f"{results}: of another GPU or number of rounds; choose another --out")
    found |= {"manifest": facts, "rounds": asked.rounds, "dtype": DTYPE}
    failed = []
    for name, make in parts(asked.models, asked.device, asked.rounds, found).items():
        if name in found:
            continue
        try:
            found[name] = make()
        except Exception as error:  # of any kind; the other parts are worth having
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            failed.append(name)
            continue
        found["revisions"] = sorted({*found["revisions"], str(facts["revision"])})
        write_json(results, found)
        write_text(report, page(found))
    if failed:
        raise Spec2SeqError(f"{', '.join(failed)}: not measured; the same command goes on with what is missing")
    print(f"{results}\n{report}")


if __name__ == "__main__":
    run_main(main)
