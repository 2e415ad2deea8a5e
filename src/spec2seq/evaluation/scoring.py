"""Score files of outputs against references: every metric is a function of statistics that add up over lines."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from spec2seq import io
from spec2seq.config import check_choice, check_range
from spec2seq.errors import Spec2SeqError, UsageError, missing_extra
from spec2seq.evaluation import compound, rouge
from spec2seq.evaluation.bootstrap import paired_bootstrap

METRICS = ("bleu", "chrf", "compound-bleu", "rouge")
SAMPLES, SEED = 1000, 12345  # sacrebleu's own


@dataclass(frozen=True)
class Metric:
    """`statistics(hypotheses, references)` is [lines, numbers]; `value` makes a score for each of `names` of their sum.

    `signature` says how it is computed; sacrebleu knows its own only after the statistics.
    """

    names: tuple[str, ...]
    statistics: Callable[[Sequence[str], Sequence[str]], np.ndarray]
    value: Callable[[np.ndarray], np.ndarray]
    signature: Callable[[], str]


def make_metric(name: str, tokenized: bool = False, language: str | None = None) -> Metric:
    """One of METRICS. `tokenized` texts keep their tokens for BLEU; others need a `language` for compound BLEU.

    Raises Spec2SeqError if the package of the metric is not installed.
    """
    if name == "rouge":
        return Metric(rouge.VARIANTS, rouge.statistics, rouge.mean, rouge.signature)
    return _compound(None if tokenized else language) if name == "compound-bleu" else _sacrebleu(name, tokenized)


def _sacrebleu(name: str, tokenized: bool) -> Metric:
    try:
        import sacrebleu
    except ImportError:
        raise missing_extra("sacrebleu", "eval") from None
    # force: it would warn of the very tokens that --tokenized announces.
    bleu = {"tokenize": "none", "force": True} if tokenized else {}
    metric = sacrebleu.BLEU(**bleu) if name == "bleu" else sacrebleu.CHRF()
    # These two private methods are what its corpus_score and its paired tests consist of.
    return Metric(
        (name,),
        lambda made, wanted: np.array(metric._extract_corpus_statistics(list(made), [list(wanted)])),
        lambda total: np.array([metric._compute_score_from_stats(list(total)).score]),
        lambda: str(metric.get_signature()),
    )


def _compound(language: str | None) -> Metric:
    if language is None:
        return Metric(("compound-bleu",), compound.statistics, compound.bleu, lambda: _COMPOUND.format("given"))
    from sacremoses import MosesTokenizer

    tokenizer = MosesTokenizer(lang=language)

    def statistics(made: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
        return compound.statistics(*([tokenizer.tokenize(t, return_str=True) for t in side] for side in (made, wanted)))

    name = f"moses-{language}-sacremoses-{version('sacremoses')}"
    return Metric(("compound-bleu",), statistics, compound.bleu, lambda: _COMPOUND.format(name))


_COMPOUND = "nrefs:1|case:mixed|tok:{}|hyphens:split|smooth:none|unk:no match"


def score_files(
    hyp: Path | None, ref: Path, metrics: Sequence[str] = ("bleu", "chrf"), *, ref_format: str = "text",
    hyp_field: str | None = None, ref_field: str | None = None, tokenized: bool = False, language: str | None = None,
    against: Path | None = None, samples: int | None = None, seed: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score the lines of `hyp` (None is stdin) against those of `ref`, and compare with those of `against` if given.

    A file whose name ends in .jsonl has a text in a field of each object, `output` and `reference` if not said.
    `ref_format` fairseq takes the T- lines of fairseq-generate's output. Returns `lines` and `metrics`, by name:
    score, signature, and with `against` its score and a `Difference`.

    Raises UsageError for options that do not fit, Spec2SeqError for files that do not.
    """
    _check(metrics, ref_format, tokenized, language, against, samples, seed)
    makers = [make_metric(name, tokenized, language) for name in metrics]
    if ref_format == "fairseq":
        if ref_field is not None:
            raise UsageError("--ref-field does nothing with --ref-format fairseq")
        wanted = fairseq_references(ref)
    else:
        wanted = read_texts(ref, ref_field, "reference", "--ref-field")
    outputs = [read_texts(path, hyp_field, "output", "--hyp-field") for path in (hyp, against)[: 1 + bool(against)]]
    for path, texts in zip((hyp, against), outputs, strict=False):
        if len(texts) != len(wanted):
            raise Spec2SeqError(
                f"{io.name_of(path)} has {len(texts)} lines, {ref} has {len(wanted)}; allowed: one output a reference"
            )
    if not wanted:
        raise Spec2SeqError(f"{ref}: no lines; allowed: at least one")
    found: dict[str, Any] = {}
    for metric in makers:
        found |= _score(metric, outputs, wanted, samples or SAMPLES, SEED if seed is None else seed)
    return {"lines": len(wanted), "metrics": found}


def _check(metrics, ref_format, tokenized, language, against, samples, seed) -> None:
    for name in metrics:
        check_choice("--metrics", name, METRICS)
    check_choice("--ref-format", ref_format, ("text", "fairseq"))
    check_range("--samples", samples, 1, 1_000_000)
    check_range("--seed", seed, 0)
    compounds = "compound-bleu" in metrics
    if compounds and not tokenized and language is None:
        raise UsageError("compound-bleu needs tokens; allowed: --language CODE to make them, or --tokenized")
    useless = {
        "--language": language is not None and (tokenized or not compounds),
        "--tokenized": tokenized and not compounds and "bleu" not in metrics,
        "--samples": samples is not None and against is None,
        "--seed": seed is not None and against is None,
    }
    for flag, is_useless in useless.items():
        if is_useless:
            needs = "--against FILE" if flag in ("--samples", "--seed") else "a metric that asks for it"
            raise UsageError(f"{flag} does nothing here; it needs {needs}")


def _score(metric: Metric, outputs: list[list[str]], wanted: list[str], samples: int, seed: int) -> dict[str, Any]:
    statistics = [metric.statistics(made, wanted) for made in outputs]
    scores = [metric.value(rows.sum(0)).tolist() for rows in statistics]
    found = {name: {"score": score} for name, score in zip(metric.names, scores[0], strict=True)}
    if len(outputs) == 2:
        differences = paired_bootstrap(*statistics, metric.value, samples, seed)
        for name, other, difference in zip(metric.names, scores[1], differences, strict=True):
            found[name] |= {"against": other, **asdict(difference), "samples": samples, "seed": seed}
    return {name: values | {"signature": metric.signature()} for name, values in found.items()}


def read_texts(path: Path | None, field: str | None, default: str, flag: str) -> list[str]:
    """The lines of a file (None is stdin), or the texts of a field of a .jsonl; `flag` is the option that names it."""
    if path is not None and path.name.removesuffix(".gz").endswith(".jsonl"):
        return [line.text for line in io.read_fields(path, field or default)]
    if field is not None:
        raise UsageError(f"{flag} does nothing with {io.name_of(path)}; it needs a file that ends in .jsonl")
    return [line.text for line in io.read_lines(path)]


def fairseq_references(path: Path) -> list[str]:
    """The references in the output of fairseq-generate: its lines `T-<number> TAB text`, sorted by number.

    Raises Spec2SeqError naming the line if one has no number or no text, or a number comes twice.
    """
    found: dict[int, str] = {}
    for line in io.read_lines(path):
        if not line.text.startswith("T-"):
            continue
        number, tab, text = line.text.removeprefix("T-").partition("\t")
        where = f"{path}: line {line.number}"
        if not tab or not number.isdecimal():
            raise Spec2SeqError(f"{where}: {line.text[:40]!r} is no reference; allowed: T-<number> TAB text")
        if int(number) in found:
            raise Spec2SeqError(f"{where}: T-{number} comes twice; allowed: the output of one run")
        found[int(number)] = text.split("\t")[0]
    if not found:
        raise Spec2SeqError(f"{path}: no line begins with T-; allowed: the output of fairseq-generate")
    return [found[number] for number in sorted(found)]


def describe(report: dict[str, Any]) -> str:
    """What `score_files` found, a line for each score."""
    lines = [f"{report['lines']} lines"]
    for name, found in report["metrics"].items():
        shown = f"{name:<14} {found['score']:6.2f}"
        if "against" in found:
            shown += f"  against {found['against']:.2f}: {found['difference']:+.2f}, "
            shown += f"95% from {found['low']:+.2f} to {found['high']:+.2f}, p {found['p_value']:.3f}"
        lines.append(f"{shown}  {found['signature']}")
    return "\n".join(lines)
