"""The subcommands that make models: train, distill, make-drafter, import fairseq."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from spec2seq import io
from spec2seq.cli.flags import (
    TASK,
    LanguageFlag,
    TaskFlag,
    TimestampsFlag,
    load_all,
    quiet,
    report,
    result,
    with_options,
)
from spec2seq.options import DTYPES, MethodOptions, RunOptions


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML; see recipes/")],
    out: Annotated[
        Path | None, typer.Option(help="folder of the run; an unfinished one is continued (default: runs/NAME)")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="folder of the data files (default: $SPEC2SEQ_DATA)")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="stop cleanly after so long; the same call goes on")] = None,
) -> None:
    """Train a model from a recipe.

    A run that was stopped goes on by the same command.
    """
    quiet()
    from spec2seq import training

    loaded = training.load_recipe(recipe)
    done = training.train(loaded, out or Path("runs", loaded.name), data, max_minutes, report)
    state = "finished" if done.finished else "to be continued by the same command"
    result(f"{done.folder}: step {done.step}, {done.minutes:.0f} minutes, {state}")


@with_options
def distill(
    run: RunOptions, method: MethodOptions,
    corpus: Annotated[Path, typer.Argument(help=".tsv, .jsonl or .txt (a source a line), also .gz")],
    out: Annotated[Path, typer.Option("--out", help="JSONL: source, target, tokens, reference; also .gz")],
    recipe: Annotated[Path | None, typer.Option(help="take columns and filters from its data section")] = None,
    lines: Annotated[int | None, typer.Option(min=1, help="so many, spread over the usable lines")] = None,
    language: LanguageFlag = None,
    task: TaskFlag = None,
    timestamps: TimestampsFlag = None,
) -> None:  # fmt: skip
    """Write a model's output for a corpus; of a model that hears it names audio files.

    What a drafter learns from. A call that was stopped goes on; `accelerate launch` shares the lines out.
    """
    from spec2seq.training.distill import distill as run_distill
    from spec2seq.training.recipe import DataConfig, load_recipe

    data = load_recipe(recipe).data if recipe else DataConfig(train=str(corpus), dev="", max_words=100_000)
    io.check_readable(corpus)
    told = run.given("truncate") | {"language": language, "task": task, "timestamps": timestamps}
    data = dataclasses.replace(data, **{name: value for name, value in told.items() if value is not None})
    if data.prefix:  # the model's, and in no record: training puts it there again
        run = dataclasses.replace(run, prefix=run.given("prefix").get("prefix", data.prefix))
        data = dataclasses.replace(data, prefix="")
    model, decoding = load_all(run, method)

    settings = run.given("batch_size", "max_new_tokens")
    if model.model.architecture.sound is None:
        settings["max_new_tokens"] = model.max_new_tokens(settings.get("max_new_tokens"))
    done = run_distill(model, corpus, out, data, decoding, lines=lines, report=report, **settings)
    result(
        f"{done.file}: {done.lines} lines, {done.tokens} tokens, {done.tokens / max(done.seconds, 1e-9):.0f} a second"
    )


def make_drafter(
    model: Annotated[str, typer.Argument(help="folder or hub id of the model to speed up")],
    sources: Annotated[Path, typer.Option(help=".tsv, .jsonl or .txt (a source a line), also .gz")],
    out: Annotated[Path, typer.Option("--out", help="folder to write; must not exist")],
    field: Annotated[str | None, typer.Option(help="of the source (default: 0 in .tsv, source in .jsonl)")] = None,
    src_lang: Annotated[str | None, typer.Option(help="of a multilingual model, as its tokenizer names it")] = None,
    tgt_lang: Annotated[str | None, typer.Option(help="the language to write")] = None,
    prefix: Annotated[str, typer.Option(help="what stands before every source, as T5 wants it")] = "",
    language: LanguageFlag = None,
    task: TaskFlag = None,
    timestamps: TimestampsFlag = None,
    dtype: Annotated[
        str, typer.Option(metavar="|".join(DTYPES), help="of the model while it distils and is measured")
    ] = "float32",
    lines: Annotated[int | None, typer.Option(help="so many, spread over the usable lines (default: all)")] = None,
    minutes: Annotated[float, typer.Option(help="of training")] = 30.0,
    layers: Annotated[int, typer.Option(help="of the drafter")] = 1,
    block_size: Annotated[int, typer.Option(help="the most tokens of a draft")] = 6,
    dev_lines: Annotated[
        int | None,
        typer.Option(help="held out to choose the weights, and as many to test (default: 200, or 40 of sounds)"),
    ] = None,
) -> None:
    """Make a block drafter for a model that reads or hears; then the sources name audio files.

    Distils, trains, checks that decoding with it is greedy's output, and measures the speed-up. The work lies in
    OUT.work until all is done: the same command goes on.
    """
    quiet()
    from spec2seq.training import make_drafter as making

    made = making.make_drafter(
        model, sources, out, field=field, src_lang=src_lang, tgt_lang=tgt_lang, prefix=prefix, language=language,
        task=task or TASK, timestamps=timestamps, dtype=dtype, lines=lines, minutes=minutes, layers=layers,
        block_size=block_size, dev_lines=dev_lines, report=report,
    )  # fmt: skip
    print(making.describe_made(made))


def shortlist(
    little: Annotated[Path, typer.Argument(help="folder of the little model; shortlist.json is written into it")],
    outputs: Annotated[Path, typer.Argument(help="JSONL that distill or calibrate wrote with its verifier")],
    covered: Annotated[float, typer.Option(help="share of the tokens there, from 0.5 to 1")] = 0.99,
) -> None:
    """Let a little model propose frequent tokens alone.

    Its passes become cheaper, more so with a large vocabulary; what it never proposes is left to the verifier.
    """
    quiet()
    from spec2seq.training.shortlist import write_shortlist

    chosen, vocabulary = write_shortlist(little, outputs, covered)
    print(f"{little / 'shortlist.json'}: {len(chosen)} of {vocabulary} tokens")


def import_fairseq(
    checkpoint: Annotated[Path, typer.Argument(help="the verifier: architecture transformer or bart_base")],
    out: Annotated[Path, typer.Argument(help="folder to write; it must not exist")],
    dictionary: Annotated[Path, typer.Option("--dict", help="dict.XX.txt, the same for source and target")],
    drafter: Annotated[Path | None, typer.Option(help="a drafter's checkpoint: architecture block")] = None,
    bpe: Annotated[Path | None, typer.Option(help="subword-nmt codes; without it lines come segmented")] = None,
    moses: Annotated[
        str | None, typer.Option(help="languages such as en-de, to (de)tokenize; without it lines come tokenized")
    ] = None,
) -> None:
    """Make a model folder of a fairseq checkpoint.

    The drafter goes to OUT/drafter. No code from the checkpoint is run.
    """
    quiet()
    from spec2seq.models.fairseq import import_fairseq

    import_fairseq(checkpoint, dictionary, out, drafter=drafter, codes=bpe, moses=moses)
    print(out)
