"""The report of a bench or a demo, from its JSON alone: report.html and report.md, and README's table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spec2seq.errors import Spec2SeqError
from spec2seq.evaluation import figures
from spec2seq.evaluation.document import Block, Heading, Sentence, Table, Text, as_html, as_markdown
from spec2seq.evaluation.tables import (
    ENGINES,
    flat,
    head_cells,
    is_lossless,
    manifest_rows,
    measured,
    method_label,
    mkl_note,
    number,
    ratio,
    readme_table,
    replace_between_markers,
    share,
    speed_table,
)
from spec2seq.files import read_json, write_text

LISTED = 10  # differences between two engines, of each pair


def write_report(folder: Path) -> tuple[Path, Path]:
    """Write report.html and report.md beside results.json and, if it is there, study.json; returns their paths.
    Raises Spec2SeqError if they are not what a bench writes."""
    blocks = report_blocks(*read_results(folder))
    page, text = folder / "report.html", folder / "report.md"
    write_text(page, as_html("spec2seq bench", blocks))
    write_text(text, as_markdown(blocks))
    return page, text


def write_readme(folder: Path, readme: Path) -> None:
    """Put README's table between its markers. Raises Spec2SeqError if they are not there."""
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise Spec2SeqError(f"{readme}: cannot be read: {error.strerror}") from None
    write_text(readme, replace_between_markers(text, readme_table(read_results(folder)[0])))


def read_results(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """results.json, and study.json if there is one."""
    study = folder / "study.json"
    return read_json(folder / "results.json"), read_json(study) if study.is_file() else None


def report_blocks(results: dict[str, Any], study: dict[str, Any] | None = None) -> list[Block]:
    """The page. Raises Spec2SeqError if these are not the results of a bench."""
    try:
        parts = [
            *_summary(results), *_speed(results), *_quality(results["rows"], results["data"]),
            figures.frontier(results), figures.latency(results), *_latencies(results["rows"]),
            *figures.acceptance(results), *figures.phases(results), *figures.throughput(results),
            *_costs(results["pass_costs"]), *_memory(results),
            *_agreement(results["agreement"]), *(figures.study(study) if study else []),
            *_sentences(results["sentences"], results.get("sentences_of")),
            Heading("How this was made"), manifest_rows(results["manifest"]),
            Text(f"Environment of every engine: {flat(results['environment'])}."),
        ]  # fmt: skip
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise Spec2SeqError(f"not the results of a bench: {type(error).__name__} {error}") from None
    return parts


def _summary(results: dict[str, Any]) -> list[Block]:
    data, recipe, rows = results["data"], results["recipe"], results["rows"]
    text = (
        f"{data['lines']} lines of `{data['file']}` for quality, {data['timed_lines']} of them, stratified by length, "
        f"for time. The same weights and token ids in and ids out for every engine (no tokenizer is timed), at most "
        f"{data['max_new_tokens']} new tokens, {recipe['rounds']} passes at batch size 1 "
        f"({recipe['side_rounds']} of beam search, variants and peers' speculation), each cut into {data['slices']} "
        f"interleaved rounds, {recipe['batch_rounds']} rounds above, there of at least as many lines as a batch has, "
        "each engine and dtype in a process of its own, with all threads or with one, whichever is faster for it"
        f"{mkl_note(measured(rows))}. "
        "Ratios are medians of the rounds' own ratios with the "
        "interquartile range; above 1 is faster than the baseline: greedy of the engine named "
        f"at the same batch size, in the row's dtype if the engine has it, else in {recipe['dtype'][0]}."
    )
    lossless = [row for row in measured(rows) if row["engine"] == "spec2seq" and row["batch_size"] == 1
                and row["method"] != "greedy" and is_lossless(row)]  # fmt: skip
    parts: list[Block] = [Heading("Bench", 1), Text(text)]
    if lossless:
        best = max(lossless, key=lambda row: row["speedup_vs_greedy"]["median"])
        speed = best["speedup_vs_greedy"]
        parts.append(Text(
            f"The fastest of our lossless methods at batch size 1, {method_label(best)}, writes "
            f"{best['tokens_per_verifier_call']:.2f} tokens with each pass of the verifier and is "
            f"{speed['median']:.2f} ({speed['low']:.2f}–{speed['high']:.2f}) times as fast as our greedy; "
            f"{best['identical_to_greedy']:.1%} of its outputs are greedy's, token for token."
        ))  # fmt: skip
    again = {row["dtype"]: ratio(row["speedup_vs_greedy"]) for row in measured(rows)
             if row["again"] and row["batch_size"] == 1}  # fmt: skip
    if again:
        parts.append(Text(
            f"Our greedy measured again under another name: {flat(again)}. So far do two measurements of one thing lie "
            "apart here; a ratio closer to 1 than this says nothing."
        ))  # fmt: skip
    return parts


def _speed(results: dict[str, Any]) -> list[Block]:
    parts: list[Block] = []
    for size in results["recipe"]["batch_sizes"]:
        rows = [row for row in results["rows"] if row["batch_size"] == size]
        parts += [Heading(f"Speed, batch size {size}"), speed_table(rows)]
    return parts


def _quality(rows: Sequence[dict[str, Any]], data: dict[str, Any]) -> list[Block]:
    names = [
        name for name in ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "rougeLsum") if any(name in r for r in rows)
    ]
    head = ["engine", "method", "dtype", "lines", *names, *(f"{name} against our beam 5" for name in names),
            "same tokens as the engine's greedy"]  # fmt: skip
    made = []
    for row in measured(rows):
        if row["batch_size"] == 1 and not row["again"]:
            against = row["against_beam"] or {}
            made.append([
                *head_cells(row), row["quality_lines"], *(number(row.get(name), 1) for name in names),
                *(_difference(against.get(name)) for name in names), share(row["identical_to_greedy"]),
            ])  # fmt: skip
    note = (
        "Decoded once, in batches; an engine that refuses batches has decoded the timed lines only and has no scores. "
        "Differences are with their 95% interval and two-sided p-value by paired bootstrap. "
        + ", ".join(f"`{signature}`" for signature in data["signatures"])
    )
    return [Heading("Quality"), Table(head, made, left=3), Text(note)]


def _difference(found: dict[str, float] | None) -> str:
    if found is None:
        return "–"
    return f"{found['difference']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f}), p {found['p_value']:.3f}"


def _latencies(rows: Sequence[dict[str, Any]]) -> list[Block]:
    made = [
        [*head_cells(row), *(number(row[f"latency_p{p}_ms"], 1) for p in (50, 95, 99))]
        for row in measured(rows)
        if row["batch_size"] == 1
    ]
    head = ["engine", "method", "dtype", "p50, ms", "p95, ms", "p99, ms"]
    return [Heading("Latency"), Table(head, made, left=3), Text("Of a sentence at batch size 1.")]


def _costs(costs: dict[str, Any] | None) -> list[Block]:
    return [] if costs is None else [figures.costs(costs), *_floor(costs)]


def _floor(costs: dict[str, Any]) -> list[Block]:
    one, floor = costs["verifier_ms"]["1"]["1"], costs["floor_ms"]
    text = (
        f"This machine reads {costs['bytes_per_second'] / 1e9:.1f} GB a second from memory (the sum of an array that "
        f"no cache holds). A verifier pass reads {costs['weight_bytes'] / 1e6:.1f} MB of weights, which takes "
        f"{floor:.2f} ms; a pass over one token is measured at {one:.2f} ms, {one / floor:.1f} times that. Weights "
        "that stay in a cache can beat the floor."
    )
    little = costs["little_ms"]
    return [Text(text + (f" A pass of the little model takes {little:.2f} ms." if little else ""))]


def _memory(results: dict[str, Any]) -> list[Block]:
    sizes = [
        [name, f"{one['parameters']:,}", *(number(one[key] / 2**20) for key in ("weight_bytes", "cache_bytes"))]
        for name, one in results["tensor_bytes"].items()
    ]
    parts: list[Block] = [
        Heading("Memory"), Table(["part", "parameters", "weights, MiB", "cache of a row of 32 + 32 tokens, MiB"], sizes)
    ]  # fmt: skip
    batch_sizes = results["recipe"]["batch_sizes"]
    found: dict[tuple[str, ...], list[str]] = {}
    for row in measured(results["rows"]):
        if row["peak_memory_mb"] is not None:
            cells = found.setdefault(tuple(head_cells(row)), ["–"] * len(batch_sizes))
            cells[batch_sizes.index(row["batch_size"])] = number(row["peak_memory_mb"], 0)
    if found:
        head = ["engine", "method", "dtype", *(f"batch {size}, MiB" for size in batch_sizes)]
        note = (
            "Peak of fresh processes that decode one batch, 32 new tokens at most: resident, or the device's on a GPU."
        )
        parts += [Text(note), Table(head, [[*names, *cells] for names, cells in found.items()], left=3)]
    return parts


def _agreement(found: Sequence[dict[str, Any]]) -> list[Block]:
    parts: list[Block] = [Heading("Do the engines agree?")]
    for peer in found:
        name = f"{ENGINES[peer['engine']]} {peer['dtype']}"
        text = f"{name} greedy: {peer['identical']} of {peer['lines']} lines have the tokens of our greedy."
        differences = peer["differences"]
        if differences:
            ties = sum(difference["logit_gap"] < 1e-3 for difference in differences)
            gaps = ", ".join(
                f"line {d['line']} at token {d['token']} ({d['logit_gap']:.1e})" for d in differences[:LISTED]
            )
            more = f" and {len(differences) - LISTED} more" if len(differences) > LISTED else ""
            text += (
                f" {len(differences)} differ, {ties} of them where our two best logits lie within 0.001 of each other. "
                f"First difference (gap between our two best logits there): {gaps}{more}."
            )
        parts.append(Text(text))
    return parts if found else [*parts, Text("No other engine was measured.")]


def _sentences(sentences: Sequence[dict[str, Any]], by: dict[str, Any] | None) -> list[Block]:
    if not sentences:
        return []
    name = f" is {method_label(by)}, {by['dtype']}" if by else ""
    note = (
        f"The lossless method with the most tokens for each pass of the verifier{name}: its drafter proposes, the "
        "verifier keeps what it would have written itself and puts its own token where it would not. Underlined on a "
        "tint (plain in Markdown): the draft stands. "
        "Bold: the verifier wrote it."
    )
    parts: list[Block] = [Heading("Who wrote what"), Text(note)]
    for sentence in sentences:
        tokens = [(token["text"], token["by"]) for token in sentence["tokens"]]
        count = f"{sentence['new_tokens']} tokens in {sentence['verifier_calls']} passes of the verifier"
        parts.append(Sentence(sentence["source"], sentence["reference"], tokens, count))
    return parts
