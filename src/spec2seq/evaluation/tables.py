"""How rows of results are called and numbers shown, and README's table."""

from collections.abc import Sequence
from typing import Any

from spec2seq.errors import Spec2SeqError
from spec2seq.evaluation.document import Table, as_markdown, markdown_table

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
ENGINES = {"spec2seq": "spec2seq", "hf": "Transformers", "ctranslate2": "CTranslate2"}
METHODS = {"bild": "BiLD", "specdec": "SpecDec"}
PHASES = {"encode": "encode", "draft": "draft", "verify": "verify", "judge": "judge and commit", "rest": "loop"}
SCORES = {"bleu": "BLEU", "rougeLsum": "ROUGE-Lsum", "chrf": "chrF"}
RATIOS = {"speedup_vs_greedy": "against our greedy", "speedup_vs_hf": "against Transformers' greedy",
          "speedup_vs_ctranslate2": "against CTranslate2's greedy"}  # fmt: skip
PACKAGES = {"torch": "PyTorch", "transformers": "Transformers", "ctranslate2": "CTranslate2"}


def readme_table(results: dict[str, Any]) -> str:
    """The presets and the peers' ways of decoding at batch size 1; everything else is in the report."""
    rows = [row for row in results["rows"] if _is_preset(row) and row["batch_size"] == 1]
    throughput = [row for row in results["rows"] if _is_preset(row)]
    manifest, data, recipe = results["manifest"], results["data"], results["recipe"]
    versions = manifest["versions"]
    peers = ", ".join(f"{name} {versions[key]}" for key, name in PACKAGES.items() if key in versions)
    caption = (
        f"Batch size 1, {data['timed_lines']} lines of `{data['file']}` stratified by length, the same weights, "
        f"{manifest['threads'] or 'all'} threads of {manifest['cpu']}, or one where an engine is faster with it"
        f"{mkl_note(rows)}, "
        f"{peers}; medians of {recipe['rounds']} passes ({recipe['side_rounds']} of beam search and of peers' "
        f"speculation), each cut into {data['slices']} interleaved rounds, for ratios of the rounds with the "
        f"interquartile range; a baseline has the row's dtype if its engine has it, else {recipe['dtype'][0]}. "
        f"Quality and same tokens are of {data['lines']} lines, decoded apart in batches; so are a peer's tokens per "
        f"verifier call, ours are of the timed passes. "
        f"Revision {manifest['revision']}, `{manifest['command']}`."
    )
    parts = [
        speed_table(rows, short=True), caption, "Tokens per second by batch size:", throughput_table(throughput),
    ]  # fmt: skip
    return as_markdown(parts).rstrip()


def replace_between_markers(text: str, table: str) -> str:
    """`text` with `table` between the markers. Raises Spec2SeqError if they are not there once, in this order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise Spec2SeqError(f"expected {BEGIN} and after it {END}, once each")
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def _is_preset(row: dict[str, Any]) -> bool:
    return not row["again"] and not row["parameters"]


def method_label(row: dict[str, Any]) -> str:
    """A row's method with its parameters, in words."""
    method, parameters = METHODS.get(row["method"], row["method"]), dict(row["parameters"])
    if method == "beam":
        method += f" {parameters.pop('num_beams', 5)}"
    elif row["engine"] == "spec2seq" and method != "greedy":
        method += " (lossless)" if is_lossless(row) else " (lossy)"
    parameters = ", ".join(f"{name} {value}" for name, value in parameters.items())
    return method + (f", {parameters}" if parameters else "") + (", again" if row["again"] else "")


def row_label(row: dict[str, Any], base: str) -> str:
    """Engine, method and dtype, leaving out what is usual: ours, and the dtype `base`."""
    engine = "" if row["engine"] == "spec2seq" else f"{ENGINES[row['engine']]} "
    return engine + method_label(row) + ("" if row["dtype"] == base else f", {row['dtype']}")


def is_lossless(row: dict[str, Any]) -> bool:
    """Whether a row of ours is of a method whose output is greedy's."""
    return row["method"] not in ("bild", "beam") and not row["parameters"].keys() & {"beta", "tau"}


def measured(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those that could not be measured."""
    return [row for row in rows if "unavailable" not in row]


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def ratio(spread: dict[str, float] | None) -> str:
    return "–" if spread is None else f"{spread['median']:.2f}× ({spread['low']:.2f}–{spread['high']:.2f})"


def share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def main_score(rows: Sequence[dict[str, Any]]) -> str:
    """Of SCORES the first that any row has."""
    return next((name for name in SCORES if any(row.get(name) is not None for row in rows)), "bleu")


def with_mkl(row: dict[str, Any]) -> bool:
    return "CT2_USE_MKL" in row.get("environment", {})


def mkl_note(rows: Sequence[dict[str, Any]]) -> str:
    """What stands behind the threads where one of the rows is with MKL."""
    found = any(map(with_mkl, rows))
    return " (with MKL: CTranslate2 told to multiply with it, where that is faster)" if found else ""


def head_cells(row: dict[str, Any]) -> list[str]:
    return [ENGINES[row["engine"]], method_label(row), row["dtype"]]


def speed_table(rows: Sequence[dict[str, Any]], short: bool = False) -> Table:
    """Rows of one batch size. `short` has what README shows."""
    more, score = ["tokens per second", "seconds"], main_score(rows)
    head = ["engine", "method", "dtype", "threads", "ms per token", "tokens per verifier call", *RATIOS.values(),
            "same tokens as our greedy", SCORES[score], *([] if short else more)]  # fmt: skip
    made = []
    for row in rows:
        if "unavailable" in row:
            made.append([*head_cells(row), f"not measured: {row['unavailable']}", *["–"] * (len(head) - 4)])
            continue
        seconds = row["seconds"]
        cells = [
            number(row["tokens_per_second"], 0),
            f"{seconds['median']:.2f} ({seconds['low']:.2f}–{seconds['high']:.2f})",
        ]
        made.append([
            *head_cells(row), f"{row['threads'] or 'all'}{with_mkl(row) * ', with MKL'}", number(row["ms_per_token"]),
            number(row["tokens_per_verifier_call"]),
            *(ratio(row[key]) for key in RATIOS), share(row["identical_to_our_greedy"]), number(row.get(score), 1),
            *([] if short else cells),
        ])  # fmt: skip
    return Table(head, made, left=3)


def throughput_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Tokens per second of every contender, a column for each batch size; what an engine refuses is a dash."""
    sizes = sorted({row["batch_size"] for row in rows})
    found: dict[tuple[str, ...], dict[int, float]] = {}
    for row in rows:
        cells = found.setdefault(tuple(head_cells(row)), {})
        if "unavailable" not in row:
            cells[row["batch_size"]] = row["tokens_per_second"]
    made = [[*names, *(number(cells.get(size), 0) for size in sizes)] for names, cells in found.items()]
    return Table(["engine", "method", "dtype", *(f"batch {size}" for size in sizes)], made, left=3)


def phase_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Shares of the time; what a method has no part of is a dash."""
    made = [
        [method_label(row), row["dtype"],
         *(f"{row[name] / row['all']:.0%}" if name in row else "–" for name in PHASES)]
        for row in rows
    ]  # fmt: skip
    return Table(["our method", "dtype", *PHASES.values()], made, left=2)


def manifest_rows(manifest: dict[str, Any]) -> Table:
    return Table(["what", "value"], [[name, flat(value)] for name, value in manifest.items()], words=True)


def manifest_table(manifest: dict[str, Any]) -> list[str]:
    """The lines of Markdown."""
    return markdown_table(["what", "value"], manifest_rows(manifest).rows, 2)


def flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items()) or "–"
    return "–" if value is None or value == "" else str(value)
