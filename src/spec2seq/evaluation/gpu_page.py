"""The Markdown page of what `evaluation.gpu` measured."""

from typing import Any

from spec2seq.evaluation.document import Table, as_markdown

# TensorRT-LLM's documentation: BART-large-CNN on an H100 in bfloat16, greedy, 260 to 440 tokens in, at most 128 out.
PUBLISHED_MS = 280
# README of hemingkx/SpecDec: MiB by nvidia-smi with fairseq on WMT14 EN-DE; greedy, SpecDec.
ORIGINAL_MIB = {1: (1670, 1902), 4: (1712, 1938), 8: (1758, 2012), 16: (1844, 2108), 32: (2028, 2298)}


def page(results: dict[str, Any]) -> str:
    """The page of results.json, of the parts that it has."""
    facts = results["manifest"]
    made = (
        f"Made by `{facts['command']}` at revision {', '.join(results['revisions'])} on "
        f"{facts['gpu'] or facts['cpu']}, PyTorch {facts['versions']['torch']}, {results['dtype']}; do not edit. "
        f"Medians of {results['rounds']} rounds after two in which graphs are captured."
    )
    blocks: list[Any] = ["# On a GPU", made]
    for name, section in SECTIONS.items():
        if name in results:
            blocks += section(results[name])
    return as_markdown(blocks)


def _rate(rate: float) -> list[Any]:
    return [f"The device reads {rate / 1e9:.0f} GB a second (the sum of a large array)."]


def _pass(found: list[dict[str, Any]]) -> list[Any]:
    rows = [[_method(row["k"]), f"{row['ms']:.3f}", f"{row['bytes'] / 1e6:.0f}", f"{row['floor_ms']:.3f}",
             f"{row['ratio']:.2f}"] for row in found]  # fmt: skip
    return [
        "## An iteration and what memory allows",
        "BART-large shape, random weights, one row, replayed without being read. The least is what weights and caches "
        "of an iteration take at the device's rate.",
        Table(["iteration", "ms", "MB", "least ms", "times the least"], rows),
    ]


def _launches(rows: list[dict[str, Any]]) -> list[Any]:
    asked = sorted({name for row in rows for name in row["calls"]})
    calls = [["graphs" if row["graphs"] else "eager", _method(row["k"]),
              *(f"{row['calls'].get(name, 0):.1f}" for name in asked), f"{row['operators']:.0f}"]
             for row in rows]  # fmt: skip
    return [
        "## Launches",
        "Transformer-base shape, one row: the host's calls of CUDA in an iteration, and PyTorch's operators.",
        Table(["loop", "iteration", *asked, "operators"], calls, left=2),
    ]


def _sentence(one: dict[str, Any]) -> list[Any]:
    return [
        "## A sentence",
        f"Transformer-base shape, random weights, {one['tokens']} tokens in and out, batch size 1, encoding included: "
        f"greedy {one['greedy_ms']:.2f} ms. An iteration of SpecDec with k = {one['k']} takes "
        f"{one['iteration_ms']:.3f} ms; at the {one['tokens_per_call']:.2f} tokens a pass of the bundled pair a "
        f"sentence would take {one['passes']} of them, {one['specdec_ms']:.2f} ms. That is computed: a random drafter "
        "is never right.",
    ]


def _batch(many: dict[str, Any]) -> list[Any]:
    return [
        "## A batch of long texts",
        f"BART-large shape, random weights, batch size {many['batch_size']}, {many['input']} tokens in and "
        f"{many['output']} out, greedy: {many['ms']:.0f} ms, {many['tokens_per_second']:.0f} tokens a second. "
        f"TensorRT-LLM publishes {PUBLISHED_MS} ms for BART-large-CNN on an H100 in bfloat16, batch size 32, 260 to "
        "440 tokens in and at most 128 out.",
    ]


def _equality(rows: list[dict[str, Any]]) -> list[Any]:
    table = [
        [row["dtype"], row["method"], str(row["batch_size"]), str(row["rows"]),
         str(row["rows"] - len(row["divergences"])), str(row["ties"]), str(row["bugs"])]
        for row in rows
    ]  # fmt: skip
    listed = [
        [row["dtype"], row["method"], str(row["batch_size"]), str(item["line"]), str(item["position"]),
         "–" if item["gap"] is None else f"{item['gap']:.2g}", "tie" if item["tie"] else "bug"]
        for row in rows for item in row["divergences"]
    ]  # fmt: skip
    head = ["dtype", "method", "batch size"]
    return [
        "## The same tokens",
        "The bundled model on lines of its sample. float32: with graphs against greedy without. Otherwise: against its "
        "own greedy, each line alone. A tie is a difference of logits that rounding explains.",
        Table([*head, "lines", "equal", "ties", "bugs"], table, left=2),
        *([Table([*head, "line", "place", "gap of logits", "what"], listed, left=2)] if listed else []),
    ]


def _memory(rows: list[dict[str, Any]]) -> list[Any]:
    def extra(one: float | None, other: float | None) -> str:
        return "–" if one is None or other is None else f"{other - one:.0f}"

    def cell(value: float | None) -> str:
        return "–" if value is None else f"{value:.0f}"

    table = [
        [str(row["batch_size"]), cell(row["greedy"]), cell(row["specdec"]), extra(row["greedy"], row["specdec"]),
         *map(cell, ORIGINAL_MIB[row["batch_size"]]), extra(*ORIGINAL_MIB[row["batch_size"]])]
        for row in rows
    ]  # fmt: skip
    return [
        "## Peak memory of the device",
        "MiB. Ours: the bundled pair in float32, blocks of 3 tokens, what PyTorch allocated at most in a process of "
        "its own, 32 tokens out. The original's: another model, a drafter of the verifier's size, everything that "
        "nvidia-smi counts.",
        Table(["batch size", "greedy", "SpecDec", "extra", "original greedy", "original SpecDec", "extra"], table),
    ]


def _method(k: int) -> str:
    return f"SpecDec, k = {k}" if k else "greedy"


SECTIONS = {"bytes_per_second": _rate, "pass": _pass, "launches": _launches, "sentence": _sentence, "batch": _batch,
            "equality": _equality, "memory": _memory}  # fmt: skip
