"""BiLD on real lines, as its paper reports it: thresholds chosen on dev, reported on test, and the ablations.

python -m spec2seq.evaluation.bild --unaligned FOLDER    with ende.dev.tsv and ende.test.tsv in $SPEC2SEQ_DATA
python -m spec2seq.evaluation.bild --data spelling --models FOLDER --aligned FOLDER --unaligned FOLDER   with spelling.*
python -m spec2seq.evaluation.bild --data debsum --fields document summary --metric rougeLsum …   with debsum.*.jsonl
"""

import argparse
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spec2seq import BiLD, Seq2Seq
from spec2seq.api import Method
from spec2seq.decoding.drafters import LittleModel
from spec2seq.errors import UsageError
from spec2seq.evaluation.bild_page import blocks
from spec2seq.evaluation.command import run_main
from spec2seq.evaluation.document import as_html, as_markdown
from spec2seq.evaluation.manifest import manifest
from spec2seq.evaluation.progress import progress
from spec2seq.evaluation.runs import VANILLA, Plan, measure, results, score
from spec2seq.evaluation.sample import FIELDS, Pair, read_pairs, stratified
from spec2seq.evaluation.sweeps import frontier
from spec2seq.evaluation.tables import SCORES
from spec2seq.evaluation.timing import set_threads
from spec2seq.files import write_json, write_text
from spec2seq.models.fingerprint import fingerprint
from spec2seq.options import DTYPES

Setting = tuple[float, float, bool]  # fallback, rollback, whether a draft that ends an output is verified

FALLBACKS, ROLLBACKS = (0.2, 0.3, 0.4, 0.5, 0.6), (1.0, 2.0, 3.0, 5.0)
CAPS = (1, 2, 3, 5, 8, 15, 20, None)  # None: by measurement; 10 is that of "both"
GOALS = {"no drop": 0.1, "one point": 1.0}  # how far below vanilla the score may be on dev, as the paper reports
BATCH_SIZES = (1, 8, 32)
SCORED = 32  # batch size of what is only scored: a row is what it is alone
CHUNK = 8  # lines: vanilla's seconds are of a moment before or after
STATS = ("fallback_percentage", "rollback_percentage", "tokens_per_verifier_call", "discarded", "unverified",
         "new_tokens")  # fmt: skip


@dataclass(frozen=True)
class Study:
    """A large model with little ones by mode, what is decoded, and the folder of the parts."""

    model: Seq2Seq
    little: Mapping[str, LittleModel]
    timed: Sequence[Pair]
    dev: Sequence[Pair]
    test: Sequence[Pair]
    work: Path
    fallbacks: Sequence[float] = FALLBACKS
    rollbacks: Sequence[float] = ROLLBACKS
    batch_sizes: Sequence[int] = BATCH_SIZES
    max_new_tokens: int | None = None  # the model's own limit
    metric: str = "bleu"

    def run(
        self, name: str, pairs: Sequence[Pair], methods: Mapping[str, Method], batch_size: int,
        advance: Callable[[], Any], timed: bool = True,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Rows of vanilla and the methods; if they are not `timed`, their scores alone mean something."""
        sources = [self.model.source_ids(pair.source, name, truncate=True) for pair in pairs]
        plan = Plan(sources, [pair.reference for pair in pairs], self.metric, batch_size,
                    self.model.max_new_tokens(self.max_new_tokens), CHUNK * batch_size)  # fmt: skip
        settings = {name: repr(replace(method, drafter=None)) for name, method in methods.items()}
        limits = [self.model.max_len_a, self.model.max_len_b]
        about = {"name": name, "weights": self.model.fingerprint(), "limits": limits, "methods": settings, "little": {
            mode: [fingerprint(little.model), None if little.shortlist is None else len(little.shortlist)]
            for mode, little in self.little.items()
        }}  # fmt: skip
        found = measure(self.model, plan, methods, self.work / name, about, lambda _: advance(), timed)
        return [
            {key: row[key] for key in ("method", "score", "signature", "speedup", "speedup_of_chunks")}
            | {"stats": {key: row["stats"][key] for key in STATS}}
            for row in results(plan, found)
        ]  # fmt: skip

    def steps(self) -> int:
        """Calls of `advance` that `study` makes at most."""
        points = (2 * len(self.fallbacks) * len(self.rollbacks) + 1) * len(self.little)
        dev = -(-len(self.timed) // CHUNK) * (points + len(CAPS) + 5)
        dev += -(-len(self.dev) // (CHUNK * SCORED)) * points
        each = 2 * len(self.little) * len(GOALS) + 1
        return dev + sum(-(-len(self.test) // (CHUNK * size)) * each for size in self.batch_sizes)


def study(asked: Study) -> dict[str, Any]:
    """Measure; the figures of bild.json."""
    dev, scores, chosen = {}, {}, {}
    grid = itertools.product((False, True), asked.fallbacks, asked.rollbacks)
    settings = {f"fallback={one:g} rollback={two:g}{tail * ' tail'}": (one, two, tail) for tail, one, two in grid}
    with progress("measuring", asked.steps()) as advance:
        for mode, drafter in asked.little.items():
            methods = {name: bild(drafter, setting) for name, setting in settings.items()}
            dev[mode] = asked.run(f"dev-{mode}", asked.timed, methods, 1, advance)
            faster = {row["method"]: methods[row["method"]] for row in dev[mode][1:] if _median(row) > 1}
            found = asked.run(f"scores-{mode}", asked.dev, faster, SCORED, advance, timed=False)
            scores[mode] = {row["method"]: row["score"] for row in found}
            chosen[mode] = {goal: settings.get(choose(dev[mode], scores[mode], drop)) for goal, drop in GOALS.items()}
        points = {
            f"{mode}, {goal}{note}": (mode, setting, cap)
            for mode, goals in chosen.items() for goal, setting in goals.items() if setting
            for note, cap in (("", 10), (", measured cap", None))
        }  # fmt: skip
        test = {str(size): on_test(asked, points, size, advance) for size in asked.batch_sizes}
        mode = list(asked.little)[-1]
        middle = tuple(values[len(values) // 2] for values in (asked.fallbacks, asked.rollbacks))
        base = chosen[mode]["one point"] or (*middle, False)
        ablations = asked.run("ablations", asked.timed, ablated(asked.little[mode], base), 1, advance)
    return {
        "data": {"timed_lines": len(asked.timed), "dev_lines": len(asked.dev), "test_lines": len(asked.test),
                 "metric": asked.metric, "unchanged": unchanged(asked.test, asked.metric)},
        "dev": {mode: {"rows": rows, "frontier": frontier(rows), "scores": scores[mode]} for mode, rows in dev.items()},
        "chosen": chosen, "test": test,
        "ablations": {"mode": mode, "setting": base, "rows": ablations},
    }  # fmt: skip


def on_test(
    asked: Study, points: Mapping[str, tuple[str, Setting, int | None]], batch_size: int, advance: Callable[[], Any]
) -> list[dict[str, Any]]:
    """A row of vanilla and of every point; goals that chose one setting share what was measured of it."""
    measured = {point: name for name, point in reversed(points.items())}  # the first name of each
    methods = {name: bild(asked.little[mode], setting, cap) for (mode, setting, cap), name in measured.items()}
    vanilla, *rows = asked.run(f"test-{batch_size}", asked.test, methods, batch_size, advance)
    found = {row["method"]: row for row in rows}
    return [vanilla, *(found[measured[point]] | {"method": name} for name, point in points.items())]


def unchanged(pairs: Sequence[Pair], metric: str) -> float:
    """What the sources themselves would score: a correction has to beat it."""
    return score([pair.source for pair in pairs], [pair.reference for pair in pairs], metric)[0][metric]


def choose(rows: Sequence[Mapping[str, Any]], scores: Mapping[str, float], drop: float) -> str | None:
    """The name of the fastest row whose score is at most `drop` below vanilla's; None if none with a score is faster
    than vanilla and near it."""
    near = [row for row in rows[1:] if scores.get(row["method"], -math.inf) >= scores[VANILLA] - drop]
    best = max((row for row in near if _median(row) > 1), key=_median, default=None)
    return best and best["method"]


def _median(row: Mapping[str, Any]) -> float:
    """Of the chunks' speed-ups: one slow moment can make that of all seconds."""
    return row["speedup_of_chunks"]["median"]


def bild(drafter: LittleModel, setting: Setting, cap: int | None = 10) -> Method:
    """BiLD by that setting, with a cap on what the little model writes in a row; None: by measurement."""
    return BiLD(drafter, *setting[:2], cap, verify_tail=setting[2])


def ablated(drafter: LittleModel, setting: Setting) -> dict[str, Method]:
    """The setting, without rollback, without fallback, with its tail treated otherwise, the vocabulary whole, and with
    every cap."""
    fallback, rollback, tail = setting
    return {
        "both": bild(drafter, setting),
        "no rollback": BiLD(drafter, fallback, None, verify_tail=tail),
        "no fallback": BiLD(drafter, None, rollback, verify_tail=tail),
        "tail not verified" if tail else "tail verified": bild(drafter, (fallback, rollback, not tail)),
        **({} if drafter.whole is None else {"no shortlist": bild(drafter.scoring(()), setting)}),
        **{f"cap {cap or 'measured'}": bild(drafter, setting, cap) for cap in CAPS},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write bild.json, bild.md and bild.html; bild-DATA-DTYPE.* for what is not the default."""
    parser = argparse.ArgumentParser(prog="python -m spec2seq.evaluation.bild", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--work", type=Path, default=Path("out/bild"), help="parts; the same command goes on with them")
    parser.add_argument(
        "--data", default="ende", help="DATA.dev and DATA.test, .tsv or .jsonl, are decoded (%(default)s)"
    )
    parser.add_argument("--fields", nargs=2, default=FIELDS, metavar=("SOURCE", "REFERENCE"), help="of .jsonl")
    parser.add_argument("--metric", choices=tuple(SCORES), default="bleu")
    parser.add_argument("--max-new-tokens", type=int, help="default: the model's own")
    parser.add_argument("--max-len-a", type=float, help="tokens of an output by token of its source; default: no limit")
    parser.add_argument("--max-len-b", type=int, help="so many more")
    parser.add_argument("--models", type=Path, default=Path("models/ende"), help="the large one (%(default)s)")
    parser.add_argument("--aligned", type=Path, help="a little model trained on what it writes (its folder's little/)")
    parser.add_argument("--unaligned", type=Path, help="a little model that was trained on references")
    parser.add_argument("--fallbacks", type=float, nargs="+", default=FALLBACKS)
    parser.add_argument("--rollbacks", type=float, nargs="+", default=ROLLBACKS)
    parser.add_argument("--timed-lines", type=int, default=200, help="of dev, for every setting (%(default)s)")
    parser.add_argument("--dev-lines", type=int, default=1000, help="by which the settings are chosen (%(default)s)")
    parser.add_argument("--test-lines", type=int, default=1000)
    parser.add_argument("--dtype", choices=DTYPES, default="int8")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args(arguments)
    data = os.environ.get("SPEC2SEQ_DATA")
    if not data:
        raise UsageError(f"SPEC2SEQ_DATA is not set; it names the folder of {asked.data}.dev and .test")
    set_threads(asked.threads)
    folders = {"unaligned": asked.unaligned, "aligned": asked.aligned or asked.models / "little"}
    little = {
        mode: Seq2Seq.from_pretrained(folder, dtype=asked.dtype).drafter()
        for mode, folder in folders.items()
        if folder is not None
    }
    dev, test = (read_pairs(_file(Path(data), f"{asked.data}.{part}"), asked.fields) for part in ("dev", "test"))
    lines = [stratified(*part) for part in ((dev, asked.timed_lines), (dev, asked.dev_lines), (test, asked.test_lines))]
    model = Seq2Seq.from_pretrained(
        asked.models, dtype=asked.dtype, max_len_a=asked.max_len_a, max_len_b=asked.max_len_b
    )
    unusual = (getattr(asked, key) for key in ("data", "dtype") if getattr(asked, key) != parser.get_default(key))
    stem = "-".join(["bild", *unusual])
    found = study(Study(model, little, *lines, asked.work / stem, asked.fallbacks, asked.rollbacks,
                        max_new_tokens=asked.max_new_tokens, metric=asked.metric))  # fmt: skip
    found["data"]["name"] = asked.data
    weights = {"large": asked.models} | {mode: folders[mode] for mode in little}
    made = {"manifest": manifest(_command(asked), weights, asked.dtype, asked.threads), **found}
    page = blocks(made)
    texts = {"md": as_markdown(page), "html": as_html(page[0].text, page)}  # which has the plot
    write_json(asked.out / f"{stem}.json", made)
    for ending, text in texts.items():
        write_text(asked.out / f"{stem}.{ending}", text)
    print(*(asked.out / f"{stem}.{ending}" for ending in ("json", *texts)), sep="\n")


def _file(folder: Path, name: str) -> Path:
    """The .jsonl of that name if it is there, else the .tsv."""
    found = folder / f"{name}.jsonl"
    return found if found.is_file() else folder / f"{name}.tsv"


def _command(asked: argparse.Namespace) -> str:
    """What was run, without the names of folders."""
    words = ["python -m spec2seq.evaluation.bild"]
    words += [f"--{name} FOLDER" for name in ("aligned", "unaligned") if getattr(asked, name)]
    names = ["data", "timed_lines", "dev_lines", "test_lines", "dtype", "threads", "fallbacks", "rollbacks"]
    unusual = {"fields": FIELDS, "metric": "bleu", "max_new_tokens": None, "max_len_a": None, "max_len_b": None}
    names += [name for name, usual in unusual.items() if getattr(asked, name) != usual]
    for name in names:
        value = getattr(asked, name)
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        shown = " ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in values)
        words.append(f"--{name.replace('_', '-')} {shown}")
    return " ".join(words)


if __name__ == "__main__":
    run_main(main)
