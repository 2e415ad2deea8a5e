"""The subcommands that run no model: prepare, average, score, pairs."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from spec2seq import io
from spec2seq.config import check_choice
from spec2seq.errors import UsageError


def prepare(
    source: Annotated[Path, typer.Argument(help="a text a line, UTF-8, also .gz")],
    target: Annotated[Path, typer.Argument(help="their translations, line by line")],
    out: Annotated[Path, typer.Option("--out", help=".tsv or .tsv.gz, as training reads")],
    workers: Annotated[int, typer.Option(min=1, help="processes")] = 1,
    remove_bpe: Annotated[bool, typer.Option("--remove-bpe", help="join pieces marked by @@")] = False,
    detokenize: Annotated[
        str | None, typer.Option(metavar="SOURCE,TARGET", help="undo Moses tokenization; language codes, such as en,de")
    ] = None,
    min_words: Annotated[int, typer.Option(help="of the source")] = 1,
    max_words: Annotated[int, typer.Option(help="of the source")] = 200,
    max_ratio: Annotated[float, typer.Option(help="of the characters of both sides")] = 3.0,
    dedupe: Annotated[bool, typer.Option("--dedupe", help="keep only the first of equal pairs")] = False,
    json: Annotated[bool, typer.Option("--json", help="the counts as one object")] = False,
) -> None:
    """Make a TSV of pairs from two files.

    Says how many pairs were kept, and how many dropped for each reason.
    """
    from spec2seq.training import prepare as preparing
    from spec2seq.training.recipe import DataConfig

    languages = tuple(detokenize.split(",")) if detokenize is not None else None
    if languages is not None and not (len(languages) == 2 and all(languages)):
        raise UsageError(f"--detokenize is {detokenize!r}; allowed: two language codes with a comma, such as en,de")
    filters = DataConfig("", "", min_words=min_words, max_words=max_words, max_ratio=max_ratio, dedupe=dedupe)
    how = preparing.Preparation(filters, remove_bpe, languages)
    counts = preparing.prepare(source, target, out, how, workers)
    if json:
        print(io.to_json(counts))
    else:
        kept, *dropped = (f"{reason} {count}" for reason, count in counts.items())
        print(f"{out}: {kept}; dropped: {', '.join(dropped)}")


def average(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="models of one architecture")],
    out: Annotated[Path, typer.Option("--out", help="folder to write; must not exist")],
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16 (default: as the first)")] = None,
) -> None:
    """Write the mean of the weights of models.

    All other files are those of the first folder.
    """
    check_choice("--dtype", dtype or "float32", ("float32", "float16", "bfloat16"))
    import torch

    from spec2seq.training.averaging import average_folders

    count = average_folders(folders, out, getattr(torch, dtype) if dtype else None)
    print(f"{out}: mean of {len(folders)} folders, {count} tensors")


def pairs(
    verifier: Annotated[str | None, typer.Argument(help="folder or hub id")] = None,
    drafter: Annotated[str | None, typer.Argument(help="a smaller model, to draft for it")] = None,
    json: Annotated[bool, typer.Option("--json", help="an object a line")] = False,
) -> None:
    """List models of the hub that can draft for others without training, or check two models.

    Checking reads configurations and tokenizers, no weights. Exit code 2 where the two do not go together.
    """
    from spec2seq import known_pairs

    if verifier is None:
        for pair in known_pairs.KNOWN:
            print(io.to_json(asdict(pair)) if json else f"{pair.verifier:36} {pair.drafter:36} {pair.task}")
        return
    if drafter is None:
        raise UsageError("DRAFTER is missing; allowed: two models, or none for the list")
    found = known_pairs.check(verifier, drafter)
    print(io.to_json(found) if json else known_pairs.describe(found))


def score(
    hyp: Annotated[Path, typer.Option(help="outputs, one a line, or .jsonl; - is stdin")],
    ref: Annotated[Path, typer.Option(help="references, in the same order, or .jsonl")],
    metrics: Annotated[str, typer.Option(help="with commas: bleu, chrf, compound-bleu, rouge")] = "bleu,chrf",
    ref_format: Annotated[str, typer.Option(help="text, or fairseq: T- lines of fairseq-generate")] = "text",
    hyp_field: Annotated[str | None, typer.Option(help="of .jsonl outputs (default: output)")] = None,
    ref_field: Annotated[str | None, typer.Option(help="of .jsonl references (default: reference)")] = None,
    tokenized: Annotated[
        bool, typer.Option("--tokenized", help="the texts are tokenised: bleu and compound-bleu leave them as they are")
    ] = False,
    language: Annotated[str | None, typer.Option(help="code for the Moses tokens of compound-bleu")] = None,
    against: Annotated[Path | None, typer.Option(help="other outputs to compare with, by paired bootstrap")] = None,
    samples: Annotated[int | None, typer.Option(help="of the bootstrap (default: 1000)")] = None,
    seed: Annotated[int | None, typer.Option(help="of the bootstrap (default: 12345)")] = None,
    json: Annotated[bool, typer.Option("--json", help="one object with everything")] = False,
) -> None:
    """Score outputs against references.

    With --against also the difference, its 95% interval and p-value.
    """
    from spec2seq.evaluation import scoring

    report = scoring.score_files(
        None if str(hyp) == "-" else hyp, ref, [name.strip() for name in metrics.split(",")], ref_format=ref_format,
        hyp_field=hyp_field, ref_field=ref_field, tokenized=tokenized, language=language, against=against,
        samples=samples, seed=seed,
    )  # fmt: skip
    print(io.to_json(report) if json else scoring.describe(report))
