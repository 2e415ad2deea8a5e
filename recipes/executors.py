"""What can run one decoder pass on a CPU: maintained libraries beside this package's compiled executor.

    pip install "spec2seq[bench]" onnx onnxruntime onnxscript openvino
    python recipes/executors.py

Batch size 1, the same weights, 1 and 8 tokens behind 16 others and over a source of 32. What is not installed or fails
stands in the table with the reason; torch.compile wants a C++ compiler.
"""

import argparse
import contextlib
import copy
import json
import os
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from importlib import metadata, util
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from spec2seq import Seq2Seq
from spec2seq.evaluation.command import run_main
from spec2seq.evaluation.document import markdown_table
from spec2seq.evaluation.manifest import manifest
from spec2seq.evaluation.peers import Job, Workload
from spec2seq.evaluation.peers.worker import Worker
from spec2seq.evaluation.timing import interleave, set_threads
from spec2seq.models import executor as executors
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.layers import SelfAttention, additive_mask
from spec2seq.models.quantize import LARGEST

LENGTHS = (1, 8)  # tokens of a pass
PAST, SOURCE, STEPS = 16, 32, 24  # tokens: before the pass, of the source, of CTranslate2's longer call
UNTIMED, TIMED = 2, 5  # calls of a turn
PAUSE = 0.02  # seconds before a turn
TOLERANCE = {"rtol": 1e-4, "atol": 1e-3}  # of float32 logits, the largest of which are about 8

Run = Callable[[], Any]  # a pass; returns logits `[length, vocabulary]`


class Source:
    """What a layer reads of `CrossAttention`, every key and value a tensor: cutting a big one costs some a copy."""

    mask = None

    def __init__(self, layers: list[tuple[Tensor, Tensor]]):
        self.layers = layers


class DecoderPass(nn.Module):
    """A decoder over `length` tokens as converters want it: fixed shapes, what is cached comes in and goes out as
    tensors, nothing is written in place. Absolute positions only."""

    def __init__(self, model: EncoderDecoder, length: int):
        super().__init__()
        self.decoder, self.head, self.embedding = model.decoder, model.head, model.target_embedding
        self.length, self.logit_scale = length, model.architecture.logit_scale
        hidden = torch.ones(length, PAST + length, dtype=torch.bool).triu(PAST + 1)
        self.register_buffer("mask", additive_mask(hidden, model.dtype) if length > 1 else None)

    def forward(self, tokens: Tensor, *cached: Tensor) -> tuple[Tensor, ...]:
        """Tokens `[1, length]` and `[1, heads, places, head_width]` for each layer's key and value, of the past, then
        of the source. Returns the logits and the new keys and values by layer."""
        pairs, new = list(zip(cached[::2], cached[1::2], strict=True)), []

        def store(index: int, key_value: Tensor) -> list[Tensor]:
            added = key_value.permute(2, 0, 3, 1, 4).unbind(0)
            new.extend(added)
            return [torch.cat(both, 2) for both in zip(pairs[index], added, strict=True)]

        attention, cross = SelfAttention(1, self.length, self.mask, store), Source(pairs[len(self.decoder.layers) :])
        x = self.decoder.embed(self.embedding, tokens, slice(PAST, PAST + self.length))
        for index, layer in enumerate(self.decoder.layers):
            x = layer(x, index, attention, cross)
        x = x if self.decoder.final_norm is None else self.decoder.final_norm(x)
        return self.head(x if self.logit_scale == 1.0 else x * self.logit_scale), *new


class Task:
    """The pass that all are given; `decode_block` in PyTorch fills the cache and says what logits are right."""

    def __init__(self, folder: Path, threads: int, scratch: Path, stack: contextlib.ExitStack):
        self.folder, self.threads, self.scratch, self.stack = folder, threads, scratch, stack
        self.model = Seq2Seq.from_pretrained(folder, executor="torch").model
        a, sizes = self.model.architecture, [SOURCE, PAST, max(LENGTHS)]
        ids = torch.randint(5, a.vocabulary - 5, (1, sum(sizes)), generator=torch.Generator().manual_seed(1))
        ids[0, SOURCE - 1], ids[0, SOURCE] = a.eos_token_id, a.decoder_start_token_id
        self.source, past, self.next = ids.split(sizes, 1)
        self.cache = self.model.new_cache(1)
        self.model.admit(self.cache, 0, self.model.encode(self.source, torch.tensor([SOURCE])))
        self.decode(self.model, past, 0)
        self.expected = {n: self.decode(self.model, self.next[:, :n], PAST) for n in LENGTHS}

    def decode(self, model: EncoderDecoder, tokens: Tensor, start: int) -> Tensor:
        """Logits of `decode_block`. All its callers share a cache: a pass overwrites the new places before it reads."""
        starts, horizon = torch.tensor([start]), start + tokens.shape[1]
        return model.decode_block(self.cache, tokens, starts, horizon, uniform=True, source_horizon=SOURCE).logits[0]

    def inputs(self, length: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """Of a `DecoderPass`."""
        parts = [self.cache.own[:, :, :, :, :PAST], self.cache.source[:, :, :, :, :SOURCE]]
        return self.next[:, :length].clone(), *(x.to(dtype).clone() for part in parts for x in part.flatten(0, 1))


def native(task: Task, length: int, precision: str) -> Run:
    model = copy.deepcopy(task.model)
    executors.prepare(model, precision, "native")
    return partial(task.decode, model, task.next[:, :length], PAST)


def pytorch(task: Task, length: int, precision: str, how: str = "eager") -> Run:
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    module, inputs = copy.deepcopy(DecoderPass(task.model, length)).to(dtype).eval(), task.inputs(length, dtype)
    if precision == "int8":
        module = torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, torch.qint8)
    elif how == "script":
        torch.jit.enable_onednn_fusion(True)
        module = torch.jit.freeze(torch.jit.trace(module, inputs))
    elif how != "eager":
        from torch._inductor import config

        # Said twice: the patch is what the tracer looks at, and the option keeps both ways apart, or the second would
        # run the first one's code.
        freezing = how == "freezing"
        module = torch.compile(module, fullgraph=True, dynamic=False, options={"freezing": freezing})
        with config.patch(freezing=freezing):
            module(*inputs)
    return lambda: module(*inputs)[0]


@cache
def exported(task: Task, length: int) -> Path:
    """The pass as an ONNX file."""
    path, module = task.scratch / f"pass{length}.onnx", DecoderPass(task.model, length).eval()
    with contextlib.redirect_stdout(sys.stderr):
        torch.onnx.export(module, task.inputs(length), path, dynamo=True, verbose=False)
    return path


def onnx_runtime(task: Task, length: int, precision: str) -> Run:
    import onnxruntime

    path, inputs = exported(task, length), [tensor.numpy() for tensor in task.inputs(length)]
    if precision == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        path, whole = path.with_suffix(".int8.onnx"), path
        quantize_dynamic(whole, path, per_channel=True, weight_type=QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    # Its threads may wait actively within a call, as is its default, but not into the next contestant's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for wanted, array in zip(session.get_inputs(), inputs, strict=True):
        binding.bind_cpu_input(wanted.name, array)
    for given in session.get_outputs():
        binding.bind_output(given.name)

    def run(kept: Any = inputs) -> Any:  # the binding points into them
        session.run_with_iobinding(binding)
        return binding.get_outputs()[0].numpy()

    return run


def openvino(task: Task, length: int, precision: str) -> Run:
    import openvino as ov
    from openvino import opset13 as ops

    model, inputs = ov.convert_model(exported(task, length)), [tensor.numpy() for tensor in task.inputs(length)]
    # Not told, it takes bfloat16 for float32 where the CPU has it.
    settings = {"INFERENCE_NUM_THREADS": task.threads, "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = "bf16" if precision == "bfloat16" else "f32"
    if precision == "int8":
        # Weights in int8 with a scale for each output are a form that it knows: it then quantizes what comes in, by
        # default in groups of 32. Its reading of ONNX Runtime's int8 files is slower.
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 1 << 16
        for node in model.get_ops():
            weight = node.input_value(1).get_node() if node.get_type_name() == "MatMul" else None
            if weight is not None and weight.get_type_name() == "Constant":
                values = torch.from_numpy(weight.data.copy())
                scale = values.abs().amax(-1 if node.get_attributes()["transpose_b"] else 0, keepdim=True) / LARGEST
                codes = ops.convert(ops.constant((values / scale).round().to(torch.int8).numpy()), "f32")
                node.input(1).replace_source_output(ops.multiply(codes, ops.constant(scale.numpy())).output(0))
    request = ov.compile_model(model, "CPU", settings).create_infer_request()
    for place, array in enumerate(inputs):
        request.set_input_tensor(place, ov.Tensor(array, shared_memory=True))

    def run(kept: Any = inputs) -> Any:  # the request points into them and does not keep them alive
        request.infer()
        return request.get_output_tensor(0).data

    return run


@cache
def worker(task: Task, precision: str) -> Worker:
    """CTranslate2 in a process of its own."""
    workload = Workload(task.folder, [task.source[0].tolist()], STEPS + 1, task.threads, precision)
    return task.stack.enter_context(Worker("ctranslate2", workload, {}))


def ctranslate2(task: Task, tokens: int, precision: str) -> Run:
    job = vars(Job("greedy", {"min_decoding_length": tokens}, max_new_tokens=tokens))
    return partial(worker(task, precision).ask, "time", job=job)


FLOATS = [("spec2seq native", native), ("PyTorch", pytorch), ("torch.compile", partial(pytorch, how="compile")),
          ("torch.compile, freezing", partial(pytorch, how="freezing")),
          ("TorchScript, frozen, oneDNN graphs", partial(pytorch, how="script")), ("ONNX Runtime", onnx_runtime),
          ("OpenVINO", openvino), ("CTranslate2", ctranslate2)]  # fmt: skip
CODES = [("spec2seq native", native), ("PyTorch, dynamic", pytorch), ("ONNX Runtime, dynamic", onnx_runtime),
         ("OpenVINO, dynamic", openvino), ("CTranslate2", ctranslate2)]  # fmt: skip
CONTESTANTS = {"float32": FLOATS, "bfloat16": [("PyTorch", pytorch), ("OpenVINO", openvino)], "int8": CODES}


class Contestant:
    """Its passes and the seconds of their calls by length, and what there is to say. CTranslate2 has no call for a
    pass: a step is a part of what a call for many tokens takes more than one for a single token."""

    def __init__(self, name: str, precision: str, make: Callable[..., Run], task: Task):
        self.name, self.precision, self.steps = name, precision, make is ctranslate2
        self.runs: dict[int, Run] = {}
        took = difference = 0.0
        try:
            for length in (1, STEPS + 1) if self.steps else LENGTHS:
                started = time.perf_counter()
                run = make(task, length, precision)
                for _ in range(3):  # TorchScript compiles in the first calls
                    logits = run()
                took += time.perf_counter() - started
                self.runs[length] = run
                if not self.steps:
                    logits, expected = torch.as_tensor(logits).float(), task.expected[length]
                    difference = max(difference, float((logits - expected).abs().max() / expected.abs().max()))
                    if precision == "float32":
                        reason = f"logits differ by {difference:.1g}"
                        torch.testing.assert_close(logits, expected, **TOLERANCE, msg=reason)
            self.note = f"a {STEPS}th of {STEPS} steps, logits not compared" if self.steps else f"{difference:.1g}"
            self.preparing = f"{took:.1f}"
        except Exception as error:  # a library may fail in any way, and the others go on
            reason = (str(error).strip() or "no reason given").splitlines()[0][:120]
            self.note, self.preparing = f"skipped: {type(error).__name__}: {reason}", "–"
            self.runs.clear()
        self.seconds: dict[int, list[float]] = {length: [] for length in self.runs}

    def turn(self, length: int) -> None:
        """Some calls on end, as in a decoding loop: its weights and its threads are warm from the one before."""
        time.sleep(PAUSE)  # until the last contestant's threads no longer wait actively
        for number in range(UNTIMED + TIMED):
            started = time.perf_counter()
            self.runs[length]()
            if number >= UNTIMED:
                self.seconds[length].append(time.perf_counter() - started)

    def ms(self, length: int, of: Callable[[list[float]], float]) -> float | None:
        if length not in self.runs:
            return None
        first = of(self.seconds[length])
        return 1000 * ((of(self.seconds[STEPS + 1]) - first) / STEPS if self.steps else first)


def cells(row: Contestant, ours: Contestant | None) -> list[str]:
    """A row of the table. Ratios are those of the least to the least of `ours`."""
    times, ratios = [], []
    for length in LENGTHS:
        least, usual, base = row.ms(length, min), row.ms(length, median), ours and ours.ms(length, min)
        times.append("–" if least is None else f"{least:.2f} ({usual:.2f})")
        ratios.append("–" if least is None or base is None else f"{least / base:.2f}")
    return [row.name, row.precision, *times, " · ".join(ratios), row.preparing, row.note]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("models/ende"))
    parser.add_argument("--threads", type=int, default=2, help="of every contestant")
    parser.add_argument("--repeats", type=int, default=40, help=f"turns of every contestant, {TIMED} timed calls each")
    asked = parser.parse_args()
    set_threads(asked.threads)
    with TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        for name in ("TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"):  # inductor and our own C compile anew
            os.environ[name] = os.path.join(scratch, name)
        task, started = Task(asked.model, asked.threads, Path(scratch), stack), time.perf_counter()
        with contextlib.suppress(Exception):  # those who need the files will say why there are none
            for length in LENGTHS:
                exported(task, length)
        exporting = time.perf_counter() - started
        rows = [Contestant(name, kind, make, task) for kind, makes in CONTESTANTS.items() for name, make in makes]
        turns = {f"{place} {n}": partial(row.turn, n) for place, row in enumerate(rows) for n in row.runs}
        interleave(turns, asked.repeats, warmup=0)
    ours = {row.precision: row for row in rows if row.name == "spec2seq native"}
    head = ["executor", "precision", *(f"ms for {n}" for n in LENGTHS), "ratios", "preparing, s", "note"]
    print(*markdown_table(head, [cells(row, ours.get(row.precision)) for row in rows], left=2), sep="\n")
    print(f"""
Milliseconds for {" and ".join(map(str, LENGTHS))} tokens: least (median) of {TIMED * asked.repeats} calls in
{asked.repeats} interleaved turns; threads: {asked.threads}. Ratios: of the least to the native executor's of the
same precision. Preparing: both passes, compilers and first calls included; the first to use a library pays
for its import, and the export to ONNX, {exporting:.1f} s, is not in it. Note: the largest difference of
logits to `decode_block` in PyTorch, by the largest logit; in float32 all are within rtol {TOLERANCE["rtol"]},
atol {TOLERANCE["atol"]}.
""")
    command = f"python recipes/executors.py --threads {asked.threads} --repeats {asked.repeats}"
    facts = manifest(command, {"model": asked.model}, "float32", asked.threads)
    packages = ("onnx", "onnxruntime", "onnxscript", "openvino")
    facts["versions"] |= {name: metadata.version(name) for name in packages if util.find_spec(name)}
    print(f"Manifest: `{json.dumps(facts)}`")


if __name__ == "__main__":
    run_main(main)
