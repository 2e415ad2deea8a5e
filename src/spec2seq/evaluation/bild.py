"""BiLD on real lines, as its paper reports it: thresholds chosen on dev, reported on test, and the ablations.

python -m spec2seq.evaluation.bild --unaligned FOLDER    with ende.dev.tsv and ende.test.tsv in $SPEC2SEQ_DATA
"""

import argparse
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spec2seq import BiLD, Seq2Seq
from spec2seq.api import Method
from spec2seq.decoding.drafters import Drafter
from spec2seq.errors import UsageError
from spec2seq.evaluation.bild_page import blocks
from spec2seq.evaluation.command import run_main
from spec2seq.evaluation.document import as_html, as_markdown
from spec2seq.evaluation.manifest import manifest
from spec2seq.evaluation.progress import progress
from spec2seq.evaluation.runs import Plan, measure, results
from spec2seq.evaluation.sample import Pair, read_pairs, stratified
from spec2seq.evaluation.sweeps import frontier
from spec2seq.evaluation.timing import set_threads
from spec2seq.files import write_json, write_text
from spec2seq.options import DTYPES

Thresholds = tuple[float, float]  # fallback, rollback

FALLBACKS, ROLLBACKS, CAPS = (0.2, 0.3, 0.4, 0.5, 0.6), (1.0, 2.0, 3.0, 5.0), (1, 2, 3, 5, 8, 10, 15, 20)
GOALS = {"no drop": 0.1, "one point": 1.0}  # how far below vanilla the score may be on dev, as the paper reports
BATCH_SIZES = (1, 8, 32)
CHUNK = 8  # lines: vanilla's seconds are of a moment before or after
STATS = ("fallback_percentage", "rollback_percentage", "tokens_per_verifier_call", "discarded", "unverified",
         "new_tokens")  # fmt: skip


@dataclass(frozen=True)
class Study:
    """A large model with little ones by mode, what is decoded, and the folder of the parts."""

    model: Seq2Seq
    little: Mapping[str, Drafter]
    dev: Sequence[Pair]
    test: Sequence[Pair]
    work: Path
    batch_sizes: Sequence[int] = BATCH_SIZES
    max_new_tokens: int | None = None  # the model's own limit

    def run(
        self, name: str, pairs: Sequence[Pair], methods: Mapping[str, Method], batch_size: int,
        advance: Callable[[], Any],
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Rows of vanilla and the methods."""
        sources = [self.model.encode_text(pair.source) for pair in pairs]
        plan = Plan(sources, [pair.reference for pair in pairs], "bleu", batch_size,
                    self.model.max_new_tokens(self.max_new_tokens), CHUNK * batch_size)  # fmt: skip
        about = {"name": name, "weights": self.model.fingerprint(), "methods": {n: repr(m) for n, m in methods.items()}}
        found = measure(self.model, plan, methods, self.work / name, about, lambda _: advance())
        return [
            {key: row[key] for key in ("method", "score", "signature", "speedup", "speedup_of_chunks")}
            | {"stats": {key: row["stats"][key] for key in STATS}}
            for row in results(plan, found)
        ]  # fmt: skip

    def steps(self) -> int:
        """Calls of `advance` that `study` makes at most."""
        points = len(FALLBACKS) * len(ROLLBACKS) + 1
        dev = -(-len(self.dev) // CHUNK) * (points * len(self.little) + len(CAPS) + 3)
        each = len(self.little) * len(GOALS) + 1
        return dev + sum(-(-len(self.test) // (CHUNK * size)) * each for size in self.batch_sizes)


def study(asked: Study) -> dict[str, Any]:
    """Measure; the figures of bild.json."""
    dev, chosen = {}, {}
    pairs = {f"fallback={one:g} rollback={two:g}": (one, two) for one, two in itertools.product(FALLBACKS, ROLLBACKS)}
    with progress("measuring", asked.steps()) as advance:
        for mode, drafter in asked.little.items():
            grid = {name: BiLD(drafter, *pair) for name, pair in pairs.items()}
            dev[mode] = asked.run(f"dev-{mode}", asked.dev, grid, 1, advance)
            chosen[mode] = {goal: choose(dev[mode], pairs, drop) for goal, drop in GOALS.items()}
        methods = {
            f"{mode}, {goal}": BiLD(asked.little[mode], *thresholds)
            for mode, goals in chosen.items() for goal, thresholds in goals.items() if thresholds
        }  # fmt: skip
        test = {str(size): asked.run(f"test-{size}", asked.test, methods, size, advance) for size in asked.batch_sizes}
        mode = list(asked.little)[-1]
        base = chosen[mode]["one point"] or (FALLBACKS[len(FALLBACKS) // 2], ROLLBACKS[len(ROLLBACKS) // 2])
        ablations = asked.run("ablations", asked.dev, ablated(asked.little[mode], *base), 1, advance)
    return {
        "data": {"dev_lines": len(asked.dev), "test_lines": len(asked.test)},
        "dev": {mode: {"rows": rows, "frontier": frontier(rows)} for mode, rows in dev.items()},
        "chosen": chosen, "test": test,
        "ablations": {"mode": mode, "thresholds": base, "rows": ablations},
    }  # fmt: skip


def choose(
    rows: Sequence[Mapping[str, Any]], pairs: Mapping[str, tuple[float, float]], drop: float
) -> tuple[float, float] | None:
    """The thresholds, of those in `pairs` by name, of the fastest row whose score is at most `drop` below vanilla's,
    which is the first; None if no row is faster than vanilla and near it."""
    near = [row for row in rows[1:] if row["score"] >= rows[0]["score"] - drop and row["speedup"] > 1]
    best = max(near, key=lambda row: row["speedup"], default=None)
    return best and pairs[best["method"]]


def ablated(drafter: Drafter, fallback: float, rollback: float) -> dict[str, Method]:
    """The setting, without rollback, without fallback, and with every cap on what the little model writes in a row."""
    return {
        "both": BiLD(drafter, fallback, rollback),
        "no rollback": BiLD(drafter, fallback, None),
        "no fallback": BiLD(drafter, None, rollback),
        **{f"cap {cap}": BiLD(drafter, fallback, rollback, cap) for cap in CAPS},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write bild.json, bild.md and bild.html."""
    parser = argparse.ArgumentParser(prog="python -m spec2seq.evaluation.bild", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--work", type=Path, default=Path("out/bild"), help="parts; the same command goes on with them")
    parser.add_argument("--models", type=Path, default=Path("models/ende"), help="with the aligned one in little/")
    parser.add_argument("--unaligned", type=Path, help="a little model that was trained on references")
    parser.add_argument("--dev-lines", type=int, default=400)
    parser.add_argument("--test-lines", type=int, default=1000)
    parser.add_argument("--dtype", choices=DTYPES, default="int8")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args(arguments)
    data = os.environ.get("SPEC2SEQ_DATA")
    if not data:
        raise UsageError("SPEC2SEQ_DATA is not set; it names the folder of ende.dev.tsv and ende.test.tsv")
    set_threads(asked.threads)
    folders = {"unaligned": asked.unaligned, "aligned": asked.models / "little"}
    little = {
        mode: Seq2Seq.from_pretrained(folder, dtype=asked.dtype).drafter()
        for mode, folder in folders.items()
        if folder is not None
    }
    dev, test = (
        stratified(read_pairs(Path(data) / f"ende.{part}.tsv"), count)
        for part, count in (("dev", asked.dev_lines), ("test", asked.test_lines))
    )
    model = Seq2Seq.from_pretrained(asked.models, dtype=asked.dtype)
    command = (
        "python -m spec2seq.evaluation.bild"
        + " --unaligned FOLDER" * (asked.unaligned is not None)
        + "".join(
            f" --{name.replace('_', '-')} {getattr(asked, name)}"
            for name in ("dev_lines", "test_lines", "dtype", "threads")
        )
    )
    found = study(Study(model, little, dev, test, asked.work))
    weights = {"large": asked.models} | {mode: folders[mode] for mode in little}
    made = {"manifest": manifest(command, weights, asked.dtype, asked.threads), **found}
    write_json(asked.out / "bild.json", made)
    write_text(asked.out / "bild.md", as_markdown(blocks(made)))
    write_text(asked.out / "bild.html", as_html("BiLD on the bundled model", blocks(made)))  # which has the plot
    print(*(asked.out / f"bild.{end}" for end in ("json", "md", "html")), sep="\n")


if __name__ == "__main__":
    run_main(main)
