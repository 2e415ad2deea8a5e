"""Methods on a task: score, speed-up over vanilla and counts, chunk by chunk. Every chunk is a file, so a run that was
stopped goes on without repeating or losing a line."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spec2seq import Generation, Greedy, Seq2Seq
from spec2seq.api import Method
from spec2seq.decoding.stats import Stats
from spec2seq.errors import UsageError
from spec2seq.evaluation.scoring import make_metric
from spec2seq.evaluation.timing import Spread
from spec2seq.files import read_json, write_json, write_text

VANILLA = "vanilla"


@dataclass(frozen=True)
class Plan:
    """What every method decodes: sources as ids, their references, and one set of limits for all."""

    sources: Sequence[Sequence[int]]
    references: Sequence[str]
    metric: str
    batch_size: int = 1
    max_new_tokens: int = 127
    chunk_lines: int = 32
    profile: bool = False

    @property
    def chunks(self) -> list[slice]:
        return [slice(start, start + self.chunk_lines) for start in range(0, len(self.sources), self.chunk_lines)]

    def description(self) -> dict[str, Any]:
        """What must be the same for two calls to belong together."""
        texts = json.dumps([list(map(list, self.sources)), list(self.references)])
        values = {name: getattr(self, name) for name in ("metric", "batch_size", "max_new_tokens", "chunk_lines")}
        return values | {"lines": len(self.sources), "data": hashlib.sha256(texts.encode()).hexdigest()[:16],
                         "profile": self.profile}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What one method wrote: texts, ids and counts by line, the sum of the counts, seconds by chunk, and those of
    vanilla on the same chunk right before or after it."""

    rows: list[dict[str, Any]]
    stats: Stats
    seconds: list[float]
    vanilla: list[float]


def measure(
    model: Seq2Seq,
    plan: Plan,
    methods: Mapping[str, Method],
    out: Path,
    about: Mapping[str, Any],
    report: Callable[[str], None] | None = None,
    timed: bool = True,
) -> dict[str, Outcome]:
    """Decode the plan's lines with greedy, which is vanilla, and with every method, in turn for each chunk, and once
    more with vanilla beside each, so that a ratio is of two neighbouring moments.

    Args:
        methods: by name; another call with `out` may have others, what is there already is not decoded again.
        out: parts/METHOD/CHUNK.json appear in it; a chunk's file is written whole.
        about: what else must not change between calls: task, models, precision.
        report: takes a line of progress after each chunk.
        timed: False leaves vanilla out beside the methods, for calls that want outputs only.

    Raises UsageError if `out` holds parts of another model, task or limits.
    """
    everything = {VANILLA: Greedy(), **methods}
    _claim(out, dict(about) | plan.description())
    chunks, warm = plan.chunks, set()
    for number, chunk in enumerate(chunks):
        names = list(everything)
        for name in names[number % len(names) :] + names[: number % len(names)]:  # none always follows the same one
            path = _part(out, name, number)
            if path.is_file():
                continue
            if name not in warm:
                _decode(model, plan, everything[name], slice(chunk.start, chunk.start + 1))
                warm.add(name)
            decode = _decode if name == VANILLA or not timed else _before_vanilla if number % 2 else _after_vanilla
            write_json(path, decode(model, plan, everything[name], chunk))
            if report is not None:
                report(f"{name}: chunk {number + 1} of {len(chunks)}")
    return {name: _outcome(out, name, len(chunks)) for name in everything}


def results(plan: Plan, outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    """A row for each method: score, counts, and the speed-up over the vanilla beside it, of all seconds and with the
    spread of the chunks'."""
    made = []
    for name, outcome in outcomes.items():
        scores, signature = score([row["text"] for row in outcome.rows], plan.references, plan.metric)
        ratios = [theirs / mine for theirs, mine in zip(outcome.vanilla, outcome.seconds, strict=True)]
        made.append({
            "method": name, "score": scores[plan.metric], "scores": scores, "signature": signature,
            "speedup": sum(outcome.vanilla) / sum(outcome.seconds), "speedup_of_chunks": Spread.of(ratios).as_dict(),
            "seconds": sum(outcome.seconds), "stats": outcome.stats.as_dict(),
        })  # fmt: skip
    return made


def write_predictions(out: Path, plan: Plan, outcomes: Mapping[str, Outcome]) -> None:
    """predictions/METHOD.jsonl in `out`: line, output, reference, tokens and counts."""
    for name, outcome in outcomes.items():
        records = [
            {"line": number, "output": row["text"], "reference": reference, "tokens": row["tokens"],
             "stats": row["counts"]}
            for number, (row, reference) in enumerate(zip(outcome.rows, plan.references, strict=True), 1)
        ]  # fmt: skip
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_text(out / "predictions" / f"{slug(name)}.jsonl", lines)


def score(outputs: Sequence[str], references: Sequence[str], metric: str) -> tuple[dict[str, float], str]:
    """Scores by name, `metric` (bleu, chrf, or one of ROUGE's) among them, and how they were computed.

    ROUGE-Lsum wants a sentence a line. Published scores take NLTK's sentences; here one ends at . ! or ? before a
    space, which differs where an abbreviation stands.
    """
    if metric.startswith("rouge"):
        outputs, references = ([sentences(text) for text in side] for side in (outputs, references))
    kind = make_metric("rouge" if metric.startswith("rouge") else metric)
    outputs = [text.strip() for text in outputs]
    values = kind.value(kind.statistics(outputs, references).sum(0))
    return dict(zip(kind.names, map(float, values), strict=True)), kind.signature()


def sentences(text: str) -> str:
    """A sentence a line."""
    return re.sub(r"(?<=[.!?])([\"')\]]*)\s+", r"\1\n", text.strip())


def slug(name: str) -> str:
    """A method's name as a file's."""
    return re.sub(r"[^\w.=-]+", "_", name)


def _claim(out: Path, description: dict[str, Any]) -> None:
    stamp = out / "run.json"
    if not stamp.is_file():
        write_json(stamp, description)
        return
    before = read_json(stamp)
    for name in description:
        if before.get(name) != description[name]:
            raise UsageError(
                f"{out}: holds a run with {name} {before.get(name)!r}, now it is {description[name]!r}; choose another "
                "folder"
            )


def _part(out: Path, name: str, number: int) -> Path:
    return out / "parts" / slug(name) / f"{number:05d}.json"


def _before_vanilla(model: Seq2Seq, plan: Plan, method: Method, chunk: slice) -> dict[str, Any]:
    part = _decode(model, plan, method, chunk)
    return part | {"vanilla_seconds": _generate(model, plan, Greedy(), chunk).stats.seconds}


def _after_vanilla(model: Seq2Seq, plan: Plan, method: Method, chunk: slice) -> dict[str, Any]:
    seconds = _generate(model, plan, Greedy(), chunk).stats.seconds
    return _decode(model, plan, method, chunk) | {"vanilla_seconds": seconds}


def _decode(model: Seq2Seq, plan: Plan, method: Method, chunk: slice) -> dict[str, Any]:
    done = _generate(model, plan, method, chunk)
    rows = [{"text": row.text, "tokens": row.tokens, "counts": vars(row.counts)} for row in done.rows]
    return {"stats": vars(done.stats), "rows": rows, "vanilla_seconds": done.stats.seconds}


def _generate(model: Seq2Seq, plan: Plan, method: Method, chunk: slice) -> Generation:
    return model.generate(
        plan.sources[chunk], method, batch_size=plan.batch_size, max_new_tokens=plan.max_new_tokens,
        profile=plan.profile,
    )  # fmt: skip


def _outcome(out: Path, name: str, chunks: int) -> Outcome:
    parts = [read_json(_part(out, name, number)) for number in range(chunks)]
    total = Stats()
    for part in parts:
        stats = Stats(**part["stats"])
        total.add(stats)
        for field in ("rows", "verifier_passes", "drafter_passes", "seconds"):
            setattr(total, field, getattr(total, field) + getattr(stats, field))
        for phase, seconds in stats.phases.items():
            total.phases[phase] = total.phases.get(phase, 0.0) + seconds
    rows = [row for part in parts for row in part["rows"]]
    seconds = [part["stats"]["seconds"] for part in parts]
    return Outcome(rows, total, seconds, [part["vanilla_seconds"] for part in parts])
