"""specdec.json as Markdown."""

from typing import Any

from spec2seq.evaluation.document import markdown_table as table
from spec2seq.evaluation.tables import PHASES, manifest_table, number, ratio, share


def specdec_page(results: dict[str, Any]) -> str:
    """Everything in specdec.json as Markdown."""
    data, manifest, chosen = results["data"], results["manifest"], results["chosen"]
    setting = f"β = {chosen['beta']}, τ = {chosen['tau']:g}" if chosen else "none of the grid"
    quality = [
        [row["method"], _parameters(row["parameters"]), number(row["bleu"]), number(row["chrf"]),
         number(row["tokens_per_verifier_call"]), share(row["identical_to_greedy"])]
        for row in results["test"]
    ]  # fmt: skip
    words = next(bins for bins in results["by_words"].values() if bins)
    heads = [f"{one['words'][0]}–{one['words'][1]} words ({one['lines']} lines)" for one in words]
    lengths = [
        [name, *(number(one["tokens_per_verifier_call"]) for one in bins)]
        for name, bins in results["by_words"].items()
        if bins
    ]
    timing = [
        [row["method"], number(row["tokens_per_verifier_call"]), number(row["ms_per_sentence"], 1),
         ratio(row["speedup"]), *(number(row["phases_ms_per_token"].get(name)) for name in PHASES)]
        for row in results["timing"]
    ]  # fmt: skip
    grid = [
        [str(row["beta"]), f"{row['tau']:g}", f"{row['bleu_minus_beam']:+.2f}", number(row["tokens_per_verifier_call"])]
        for row in results["dev"]
    ]
    sizes = results["memory"]["tensor_bytes"]
    part = sizes["drafter"]["parameters"] / sizes["verifier"]["parameters"]
    memory = [
        [name, f"{one['parameters']:,}", number(one["weight_bytes"] / 2**20), number(one["cache_bytes"] / 2**20)]
        for name, one in sizes.items()
    ]
    peaks = [
        [str(row["batch_size"]), number(row["greedy"], 0), number(row["specdec"], 0),
         number(row["specdec"] - row["greedy"], 0)]
        for row in results["memory"]["peak_mb"]
    ]  # fmt: skip
    passes = [[length, number(ms)] for length, ms in results["pass_ms"].items()]
    parts = [
        "# SpecDec on the bundled model", "",
        f"Made by `{manifest['command']}`; do not edit. Quality and counts: {data['test_lines']} test lines, batch "
        f"size {data['batch_size']}, blocks of {data['block_size']} unless adaptive. Time: {data['timed_lines']} "
        f"lines, stratified by length, batch size 1, {data['rounds']} interleaved rounds after a warm-up, against our "
        f"own greedy on the same engine in float32. Setting chosen on {data['dev_lines']} dev lines: {setting}.", "",
        "## Quality and tokens per verifier call", "",
        *table(["method", "parameters", "BLEU", "chrF", "tokens per verifier call", "same as greedy"], quality, 2), "",
        f"`{results['test'][0]['bleu_signature']}`, `{results['test'][0]['chrf_signature']}`.", "",
        "By words of the source:", "", *table(["method", *heads], lengths), "",
        "## Latency", "",
        *table(["method", "tokens per verifier call", "ms a sentence", "against greedy",
                 *(f"{name}, ms a token" for name in PHASES.values())], timing), "",
        "Phases are of a separate profile run. A verifier pass, by the tokens it is fed:", "",
        *table(["tokens", "ms"], passes), "",
        "## The grid on dev", "", "BLEU is relative to beam 5's.", "",
        *table(["β", "τ", "BLEU against beam 5", "tokens per verifier call"], grid, 2), "",
        "## Memory", "",
        f"The drafter has {part:.1%} of the verifier's parameters. Weights and caches (one row of 32 + 32 tokens), "
        "MiB:", "", *table(["", "parameters", "weights", "cache"], memory), "",
        "Peak resident memory of fresh processes, MiB, one batch of sources of 32 tokens and as many new ones:", "",
        *table(["batch size", "greedy", "SpecDec", "extra"], peaks), "",
        "## Machine and versions", "", *manifest_table(manifest),
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _parameters(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items()) or "–"
