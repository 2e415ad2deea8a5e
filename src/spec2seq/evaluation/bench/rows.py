"""The rows of results.json from what was measured: pure arithmetic."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from spec2seq.evaluation.bench.recipe import Contender, Recipe
from spec2seq.evaluation.bootstrap import paired_bootstrap
from spec2seq.evaluation.metrics import share_identical
from spec2seq.evaluation.scoring import SAMPLES, SEED, Metric, make_metric
from spec2seq.evaluation.timing import Spread, Timings

DRAFTED_BY = {"assisted": "little", "bild": "little", "specdec": "drafter"}
BINS = 6


@dataclass(frozen=True)
class Timed:
    """One batch size: interleaved seconds of every contender, by name; so many rounds as `slices` are a pass over the
    timed lines, whose `tokens` are given. `per_call` are the tokens that a verifier call gave in all rounds, of those
    who count while their time is taken. At batch size 1 also the seconds of each line in each pass."""

    timings: Timings
    tokens: dict[str, int]
    per_call: dict[str, float] = field(default_factory=dict)
    line_seconds: dict[str, list[list[float]]] = field(default_factory=dict)
    slices: int = 1

    def passes(self, name: str) -> list[float]:
        """Seconds of each pass."""
        rounds = self.timings.seconds[name]
        return [sum(rounds[start : start + self.slices]) for start in range(0, len(rounds), self.slices)]


@dataclass(frozen=True)
class Measured:
    """All that the rows are made of, by the contenders' names.

    Attributes:
        outputs: one decoding of `scored` lines each: sequences, verifier_calls, extra.
        scored: the places of those lines among all; fewer where an engine refuses batches.
        timed: by batch size.
        peaks: MiB by batch size.
        sizes: parameters and bytes by part.
        refusals: reasons, by contender and batch size; batch size None is all.
        ran: threads and environment that the contender was given, by contender and batch size.
    """

    outputs: dict[str, dict[str, Any]]
    scored: dict[str, list[int]]
    timed: dict[int, Timed]
    peaks: dict[str, dict[int, float | None]]
    sizes: dict[str, Any]
    refusals: dict[tuple[str, int | None], str]
    ran: dict[tuple[str, int], dict[str, Any]]


class Scores:
    """Quality of texts against references by the recipe's metrics, and whether it differs from beam search's."""

    def __init__(self, metrics: Sequence[str], references: Sequence[str]):
        """Raises Spec2SeqError if the package of a metric is not installed."""
        self.metrics: list[Metric] = [make_metric(name) for name in metrics]
        self.references = references

    def statistics(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [metric.statistics(texts, self.references) for metric in self.metrics]

    def values(self, statistics: list[np.ndarray]) -> dict[str, float]:
        """By the name of the score."""
        found = {"bleu": None, "chrf": None}
        for metric, rows in zip(self.metrics, statistics, strict=True):
            found |= dict(zip(metric.names, metric.value(rows.sum(0)).tolist(), strict=True))
        return found

    def against(self, statistics: list[np.ndarray], beam: list[np.ndarray]) -> dict[str, Any]:
        """The difference from beam search's output by the name of the score, with interval and p-value."""
        found = {}
        for metric, ours, theirs in zip(self.metrics, statistics, beam, strict=True):
            differences = paired_bootstrap(ours, theirs, metric.value, SAMPLES, SEED)
            found |= {name: asdict(one) for name, one in zip(metric.names, differences, strict=True)}
        return found

    def signatures(self) -> list[str]:
        """Known only after the first statistics."""
        return [metric.signature() for metric in self.metrics]


def baselines(recipe: Recipe, contenders: Sequence[Contender], dtype: str) -> dict[str, str]:
    """The contenders that the ratios of a row in `dtype` are taken to, where they take part: greedy of each engine, in
    the same dtype if the engine has it, else in the first."""
    keys = {"spec2seq": "greedy", "hf": "hf", "ctranslate2": "ctranslate2"}
    greedy = [c for c in contenders if c.method == "greedy" and not c.parameters and not c.again]
    return {
        f"speedup_vs_{keys[c.engine]}": c.name
        for wanted in (recipe.dtype[0], dtype)  # the row's own comes last and stays
        for c in greedy
        if c.dtype == wanted
    }


def make_rows(
    recipe: Recipe, contenders: Sequence[Contender], measured: Measured, texts: Mapping[str, list[str]], scores: Scores
) -> list[dict[str, Any]]:
    """A row for each contender and batch size, in this order; one that was not measured says why."""
    first = baselines(recipe, contenders, recipe.dtype[0])
    quality = _qualities(contenders, measured, texts, scores, first["speedup_vs_greedy"])
    rows = []
    for contender in contenders:
        for size in recipe.batch_sizes:
            identity = contender.identity() | {"batch_size": size}
            name, refusals = contender.name, measured.refusals
            reason = refusals.get((name, None)) or refusals.get((name, size))
            if reason is not None:
                rows.append(identity | {"unavailable": reason})
                continue
            memory = {
                "extra_parameters": _extra_parameters(contender, measured.sizes),
                "peak_memory_mb": measured.peaks.get(name, {}).get(size),
            }
            base = baselines(recipe, contenders, contender.dtype)
            rows.append(identity | quality[name] | _speed(contender, size, measured, base) | memory)
    return rows


def _speed(contender: Contender, size: int, measured: Measured, base: Mapping[str, str]) -> dict[str, Any]:
    """Seconds are those of a pass over the timed lines; milliseconds per token and tokens per second come from their
    median. Ratios are those of the rounds."""
    timed, name = measured.timed[size], contender.name
    seconds, tokens = Spread.of(timed.passes(name)), timed.tokens[name]
    latencies = line_milliseconds(timed, name)
    return {
        **measured.ran[name, size],
        "rounds": len(timed.timings.seconds[name]),
        "passes": len(timed.passes(name)),
        "new_tokens": tokens,
        "seconds": seconds.as_dict(),
        **({"tokens_per_verifier_call": timed.per_call[name]} if name in timed.per_call else {}),
        "ms_per_token": 1000 * seconds.median / tokens,
        "tokens_per_second": tokens / seconds.median,
        **{f"latency_p{p}_ms": percentile(latencies, p) if latencies else None for p in (50, 95, 99)},
        **{
            key: timed.timings.speedup(name, base[key]).as_dict()
            if base.get(key) in timed.timings.seconds else None
            for key in ("speedup_vs_greedy", "speedup_vs_hf", "speedup_vs_ctranslate2")
        },
    }  # fmt: skip


def _qualities(
    contenders: Sequence[Contender], measured: Measured, texts: Mapping[str, list[str]], scores: Scores, greedy: str
) -> dict[str, dict[str, Any]]:
    """What does not depend on the batch size: scores, identity and counts of one decoding of all lines. The tokens
    of a verifier call are for those who do not count while their time is taken."""
    beam = next((c.name for c in contenders if c.engine == "spec2seq" and c.method == "beam" and c.name in texts), None)
    beam_statistics = scores.statistics(texts[beam]) if beam else None
    found = {}
    for c in contenders:
        if c.name not in measured.outputs:
            continue
        output = measured.outputs[c.name]
        sequences, calls = output["sequences"], output["verifier_calls"]
        own = next((o for o in contenders if (o.engine, o.method, o.dtype) == (c.engine, "greedy", c.dtype)), c)
        row = {
            "quality_lines": len(sequences),
            "tokens_per_verifier_call": sum(map(len, sequences)) / calls if calls else None,
            "identical_to_greedy": _share_identical(measured, c.name, own.name),
            "identical_to_our_greedy": _share_identical(measured, c.name, greedy),
        }
        if c.name in texts:
            statistics_ = scores.statistics(texts[c.name])
            row |= scores.values(statistics_)
            row["against_beam"] = scores.against(statistics_, beam_statistics) if beam else None
        else:
            row |= {"bleu": None, "chrf": None, "against_beam": None}
        found[c.name] = row
    return found


def _share_identical(measured: Measured, name: str, other: str) -> float | None:
    """Of the lines that both decoded."""
    pairs = common(measured, name, other).values()
    return share_identical(*zip(*pairs, strict=True)) if pairs else None


def common(measured: Measured, name: str, other: str) -> dict[int, tuple[list[int], list[int]]]:
    """What two contenders made of the lines that both decoded, by the place of the line."""
    mine, theirs = (
        dict(zip(measured.scored[one], measured.outputs[one]["sequences"], strict=True))
        if one in measured.outputs else {}
        for one in (name, other)
    )  # fmt: skip
    return {line: (tokens, theirs[line]) for line, tokens in mine.items() if line in theirs}


def _extra_parameters(contender: Contender, sizes: Mapping[str, Any]) -> int:
    """Parameters of the second model that the method needs beside the verifier."""
    part = DRAFTED_BY.get(contender.method)
    return sizes[part]["parameters"] if part in sizes else 0


def line_milliseconds(timed: Timed, name: str) -> list[float]:
    """The median over the rounds for each timed line, at batch size 1."""
    rounds = timed.line_seconds.get(name, [])
    return [1000 * statistics.median(line) for line in zip(*rounds, strict=True)]


def percentile(values: Sequence[float], percent: int) -> float:
    """Between the values where it falls between two."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def latency_by_length(lengths: Sequence[int], milliseconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """Median milliseconds of a line in bins of equally many lines by the length of the greedy output."""
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    count = min(BINS, len(order))
    bins = [order[number * len(order) // count : (number + 1) * len(order) // count] for number in range(count)]
    return {
        "bins": [[lengths[part[0]], lengths[part[-1]], len(part)] for part in bins],
        "mean_tokens": [statistics.mean(lengths[place] for place in part) for part in bins],
        "milliseconds": {
            name: [statistics.median(values[place] for place in part) for part in bins]
            for name, values in milliseconds.items()
        },
    }


def acceptance(stats: Mapping[str, Any]) -> dict[str, list[int]]:
    """How often each position of a draft was drafted and accepted."""
    drafted, accepted = stats["drafted_at"], stats["accepted_at"]
    return {"drafted_at": drafted, "accepted_at": accepted + [0] * (len(drafted) - len(accepted))}
