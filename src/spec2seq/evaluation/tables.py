"""compare.json as Markdown: the page in docs and the table in README, from the JSON alone."""

from collections.abc import Sequence
from typing import Any

from spec2seq.errors import Spec2SeqError

BEGIN, END = "<!-- compare:begin -->", "<!-- compare:end -->"
ENGINES = {"spec2seq": "spec2seq", "hf": "Transformers", "ctranslate2": "CTranslate2"}
PHASES = {"encode": "encode", "draft": "draft", "verify": "verify", "judge": "judge and commit", "rest": "loop"}


def readme_table(results: dict[str, Any]) -> str:
    """The presets and the peers' ways of decoding; every setting that was measured is on the page in docs."""
    rows = [row for row in results["rows"] if _is_preset(row)]
    manifest, data = results["manifest"], results["data"]
    versions = manifest["versions"]
    peers = ", ".join(f"{name} {versions[key]}" for key, name in _PACKAGES.items() if key in versions)
    caption = (
        f"Batch size 1, {data['lines']} test lines stratified by length, the same weights, "
        f"{manifest['threads']} threads of {manifest['cpu']}, {peers}; medians of {data['rounds']} interleaved rounds, "
        f"for ratios with the interquartile range. Revision {manifest['revision']}, `{manifest['command']}`."
    )
    return "\n".join([*_speed_table(rows), "", caption, "", "Where the time goes, milliseconds per token:", "",
                      *_phase_table(results)])  # fmt: skip


def markdown_page(results: dict[str, Any]) -> str:
    """Everything in compare.json, for docs/results."""
    data, manifest = results["data"], results["manifest"]
    parts = [
        "# Our engine beside Transformers and CTranslate2", "",
        f"Made by `{manifest['command']}`; do not edit. Batch size 1, {data['lines']} lines of `{data['file']}` "
        f"stratified by length, the same token ids in and ids out for every engine (no tokenizer is timed), at most "
        f"{data['max_new_tokens']} new tokens, {data['rounds']} interleaved rounds after one warm-up round, each "
        f"engine in a process of its own ({_settings(results['environment'])}). Ratios are medians of the rounds' "
        f"own ratios with the interquartile range; above 1 is faster than the baseline. \"Again\" is the baseline "
        f"measured under another name: how far two measurements of one thing lie apart.", "",
        "## Speed", "", *_speed_table(results["rows"]), "",
        "## Latency and quality", "", *_quality_table(results["rows"]), "", *_signatures(results["rows"]), "",
        "## Where the time goes", "", "Milliseconds per token in a separate profile run.", "",
        *_phase_table(results), "",
        "## What a pass costs", "", *_cost_table(results["pass_costs"]), "",
        "## Do the engines agree?", "", *_agreement(results["agreement"]), "",
        "## Machine and versions", "", *manifest_table(manifest),
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def replace_between_markers(text: str, table: str) -> str:
    """`text` with `table` between the markers. Raises Spec2SeqError if they are not there once, in this order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise Spec2SeqError(f"expected {BEGIN} and after it {END}, once each")
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


_PACKAGES = {"torch": "PyTorch", "transformers": "Transformers", "ctranslate2": "CTranslate2"}


def _is_preset(row: dict[str, Any]) -> bool:
    return not row["again"] and (row["engine"] != "spec2seq" or not row["parameters"])


def method_label(row: dict[str, Any]) -> str:
    """A row's method with its parameters, in words."""
    method = {"bild": "BiLD", "specdec": "SpecDec"}.get(row["method"], row["method"])
    if row["engine"] == "spec2seq" and row["method"] != "greedy":
        method += " (lossless)" if is_lossless(row) else " (lossy)"
    parameters = ", ".join(f"{name} {value}" for name, value in row["parameters"].items())
    return method + (f", {parameters}" if parameters else "") + (", again" if row["again"] else "")


def is_lossless(row: dict[str, Any]) -> bool:
    """Whether a row of ours is of a method whose output is greedy's."""
    return row["method"] != "bild" and not row["parameters"].keys() & {"beta", "tau"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def ratio(spread: dict[str, float] | None) -> str:
    return "–" if spread is None else f"{spread['median']:.2f}× ({spread['low']:.2f}–{spread['high']:.2f})"


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def _head(row: dict[str, Any]) -> list[str]:
    return [ENGINES[row["engine"]], method_label(row), row["dtype"]]


def _speed_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    head = ["engine", "method", "dtype", "ms per token", "tokens per verifier call", "against our greedy",
            "against Transformers' greedy", "against CTranslate2 float32 greedy",
            "same tokens as our greedy"]  # fmt: skip
    made = []
    for row in rows:
        if "unavailable" in row:
            made.append([*_head(row), f"not measured: {row['unavailable']}", *["–"] * 5])
            continue
        made.append([
            *_head(row), number(row["ms_per_token"]), number(row["tokens_per_verifier_call"]),
            *(ratio(row[f"speedup_vs_{name}"]) for name in ("greedy", "hf", "ctranslate2")),
            share(row["identical_to_our_greedy"]),
        ])  # fmt: skip
    return table(head, made, left=3)


def _quality_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    head = ["engine", "method", "dtype", "seconds", "tokens per second", "latency p50, ms", "latency p95, ms",
            "BLEU", "chrF", "same tokens as the engine's greedy"]  # fmt: skip
    made = []
    for row in rows:
        if "unavailable" not in row:
            spread = row["seconds"]
            seconds = f"{spread['median']:.2f} ({spread['low']:.2f}–{spread['high']:.2f})"
            made.append([
                *_head(row), seconds, number(row["tokens_per_second"], 0), number(row["latency_p50_ms"], 1),
                number(row["latency_p95_ms"], 1), number(row["bleu"], 1), number(row["chrf"], 1),
                share(row["identical_to_greedy"]),
            ])  # fmt: skip
    return table(head, made, left=3)


def _signatures(rows: Sequence[dict[str, Any]]) -> list[str]:
    row = next(row for row in rows if "unavailable" not in row)
    lines = f"BLEU and chrF are of these few lines only. `{row['bleu_signature']}`, `{row['chrf_signature']}`."
    return [lines]


def _phase_table(results: dict[str, Any]) -> list[str]:
    rows = []
    for phases in results["phases_ms_per_token"]:
        label = method_label(phases | {"engine": "spec2seq", "again": False})
        cells = [
            f"{phases[name]:.2f} ({phases[name] / phases['all']:.0%})" if name in phases else "–" for name in PHASES
        ]
        rows.append([label, *cells, number(phases["all"])])
    return table(["our method", *PHASES.values(), "all"], rows)


def _cost_table(costs: dict[str, Any]) -> list[str]:
    one = costs["verifier_ms"]["1"]
    rows = [
        [f"verifier, {length} token{'s' if length != '1' else ''}", number(ms), number(ms / one)]
        for length, ms in costs["verifier_ms"].items()
    ]
    rows.append(["little model, 1 token", number(costs["little_ms"]), number(costs["little_ms"] / one)])
    return table(["pass over", "ms", "of a verifier step"], rows)


def _agreement(found: Sequence[dict[str, Any]]) -> list[str]:
    if not found:
        return ["No other engine was measured."]
    lines = []
    for peer in found:
        name = f"{ENGINES[peer['engine']]} {peer['dtype']}"
        lines.append(f"- {name} greedy: {peer['identical']} of {peer['lines']} lines have the tokens of our greedy.")
        ties = sum(difference["logit_gap"] < 1e-3 for difference in peer["differences"])
        if peer["differences"]:
            gaps = ", ".join(
                f"line {d['line']} at token {d['token']} ({d['logit_gap']:.1e})" for d in peer["differences"][:10]
            )
            more = len(peer["differences"]) - 10
            gaps += f" and {more} more" if more > 0 else ""
            lines.append(
                f"  {len(peer['differences'])} differ, {ties} of them where our two best logits lie within 0.001 of "
                f"each other. First difference (gap between our two best logits there): {gaps}."
            )
    return lines


def _settings(environment: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in environment.items()) or "default thread settings"


def manifest_table(manifest: dict[str, Any]) -> list[str]:
    rows = [[name, _flat(value)] for name, value in manifest.items()]
    return table(["what", "value"], rows, left=2)


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items()) or "–"
    return "–" if value is None else str(value)
