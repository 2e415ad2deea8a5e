"""The command `spec2seq`. Each subcommand calls one library function; nothing heavy is imported before it has to."""

import contextlib
import functools
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from spec2seq import cli_files, io
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.evaluation.progress import progress
from spec2seq.options import OPTIONS, MethodOptions, Option, RunOptions, bundled_model, load, resolve
from spec2seq.version import __version__

if TYPE_CHECKING:
    from spec2seq.api import Method, Seq2Seq
    from spec2seq.decoding.stats import Stats

INTERRUPTED, BROKEN_PIPE = 130, 141  # as shells report SIGINT and SIGPIPE
# Newer Typers carry their own copy of click: its base class of usage errors is found through what they export.
_ClickException: Any = typer.BadParameter.__mro__[2]


class _Group(TyperGroup):
    """Says every error that a user can cause in one line, with the exit code that belongs to it."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        try:
            code = super().main(*args, standalone_mode=False, **extra)
        except _ClickException as error:
            code = _fail(error.format_message(), error.exit_code)
        except typer.Abort:  # older Typers make one of an interruption
            code = INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Spec2SeqError as error:
            code = _fail(str(error), error.exit_code)
        except KeyboardInterrupt as interrupt:
            print(": ".join(["interrupted", *map(str, interrupt.args)]), file=sys.stderr)
            code = INTERRUPTED
        except BrokenPipeError:
            # Whoever read the lines has enough. Python would complain when it flushes stdout at the end.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = BROKEN_PIPE
        except OSError as error:
            code = _fail(str(error), 1)
        raise typer.Exit(code)


def _fail(message: str, code: int) -> int:
    print("error:", " ".join(line.strip() for line in message.splitlines()), file=sys.stderr)
    return code


app = typer.Typer(
    cls=_Group, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its boxes cut long option names off
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
Command = Callable[..., None]
InputFile = Annotated[Path | None, typer.Argument(metavar="FILE", help="UTF-8; stdin without it", show_default=False)]
OutputFile = Annotated[Path | None, typer.Option("--output", "-o", help="write here when all is done, not to stdout")]
StatsFlag = Annotated[bool, typer.Option("--stats", help="a table of counts on stderr at the end")]
TraceFlag = Annotated[bool, typer.Option("--trace", help="which model wrote each token: d(rafter) or v(erifier)")]


def main() -> None:
    """Entry point of the command."""
    app(prog_name="spec2seq")


def _version(asked: bool) -> None:
    if asked:
        print(f"spec2seq {__version__}")
        raise typer.Exit


@app.callback(no_args_is_help=False, invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    """Speculative decoding for encoder-decoder models: the same output, sooner."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def with_options(command: Command) -> Command:
    """Give a command a flag for every line of the table, and `--config`; it gets `run` and `method`."""
    own = [p for p in inspect.signature(command).parameters.values() if p.name not in ("run", "method")]
    flags = [_parameter(option) for option in OPTIONS.values()]
    about = typer.Option("--config", metavar="FILE", help="YAML or JSON with the options below as keys; flags win")
    config = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None,
                               annotation=Annotated[Path | None, about])  # fmt: skip

    @functools.wraps(command)
    def wrapper(config: Path | None, **values: Any) -> None:
        flags = {name: values.pop(name) for name in OPTIONS}
        run, method = resolve(flags, config)
        command(**values, run=run, method=method)

    wrapper.__signature__ = inspect.Signature([*own, config, *flags])
    wrapper.__annotations__ = {}
    return wrapper


def _parameter(option: Option) -> inspect.Parameter:
    default = "none" if option.default is None else option.default
    takers = f"{', '.join(option.methods)}: " if option.of_method else ""
    what = typer.Option(
        f"{option.flag}/--no-{option.flag[2:]}" if option.type is bool else option.flag,
        help=f"{takers}{option.help} (default: {default})", show_default=False,
        metavar=None if option.type is bool else _metavar(option),
    )  # fmt: skip
    # Everything else comes as text: the table reads flags and config files alike, with the same errors.
    kind = bool if option.type is bool else str
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, what]
    )


def _metavar(option: Option) -> str:
    if option.choices:
        return "|".join(option.choices)
    name = {int: "INTEGER", float: "NUMBER", str: "TEXT"}[option.type]
    return f"{name}|{option.word}" if option.word else name


@app.command()
@with_options
def translate(
    run: RunOptions, method: MethodOptions, file: InputFile = None, output: OutputFile = None,
    json: Annotated[bool, typer.Option("--json", help="one object a line: text, tokens, stats")] = False,
    trace: TraceFlag = False, stats: StatsFlag = False,
) -> None:  # fmt: skip
    """Translate lines.

    One line out for each line in, in order; an empty line gives an empty line.
    """
    if trace and not json:
        raise UsageError("--trace does nothing without --json")

    def shape(line: io.Line, row: Any) -> str:
        return io.to_json(io.row_object(row, "text", trace)) if json else io.one_line(row.text)

    _generate(run, method, file, output, io.read_lines, shape, trace, stats)


@app.command()
@with_options
def generate(
    run: RunOptions, method: MethodOptions, file: InputFile = None, output: OutputFile = None,
    field: Annotated[str, typer.Option(help="the field that holds the source")] = "text",
    trace: TraceFlag = False, stats: StatsFlag = False,
) -> None:  # fmt: skip
    """Run JSONL through a model.

    Each object comes out with output, tokens and stats added.
    """

    def shape(line: io.Line, row: Any) -> str:
        return io.to_json((line.fields or {}) | io.row_object(row, "output", trace))

    _generate(run, method, file, output, functools.partial(io.read_objects, field=field), shape, trace, stats)


def _generate(run, method, file, output, read, shape, trace: bool, show_stats: bool) -> None:
    """Run every line that `read` gives through the model and write what `shape` makes of its row."""
    from spec2seq.decoding.stats import Stats

    path = None if file is None or str(file) == "-" else file
    counts, where = Stats(), io.name_of(path)
    with io.writer(output) as write:
        if path is not None:
            io.check_readable(path)  # before the seconds that loading takes
        model, decoding = _load(run, method)
        keep = {"truncate": run.given("truncate").get("truncate", False)}
        total = io.check_lines(model, read(path), where=where, **keep) if io.is_rereadable(path) else None
        settings = run.given("batch_size", "max_new_tokens")
        if path is None and sys.stdin.isatty():
            settings.setdefault("batch_size", 1)  # somebody types and waits for each line
        rows = io.Rows(model, decoding, read(path), where, stats=counts, trace=trace, **keep, **settings)
        hidden = output is None and sys.stdout.isatty()  # a bar would run through the lines
        with contextlib.nullcontext(lambda: None) if hidden else progress("lines", total) as advance:
            for line, row in rows:
                write(shape(line, row))
                advance()
    if show_stats:
        _print_stats(counts)


@app.command("verify-lossless")
@with_options
def verify_lossless(
    run: RunOptions, method: MethodOptions,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="lines in UTF-8; - is stdin")],
    limit: Annotated[int | None, typer.Option(min=1, help="only the first lines that are not empty")] = None,
    tie: Annotated[
        float | None, typer.Option(min=0.0, help="logit gaps below this are rounding (default: 1e-4 in float32)")
    ] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="any method; exit code 0")] = False,
    json: Annotated[bool, typer.Option("--json", help="one object with everything")] = False,
) -> None:  # fmt: skip
    """Compare a method with greedy.

    Replays the lines greedily, each alone, and with the method, and compares token ids. Exit code 1 for a
    difference that rounding does not explain, or for more than one that it does in 500 lines.
    """
    path = None if str(file) == "-" else file
    lines = [line for line in io.read_lines(path) if line.text][:limit]
    if not lines:
        raise Spec2SeqError(f"{io.name_of(path)}: no lines; allowed: at least one that is not empty")
    model, decoding = _load(run, method)
    from spec2seq.evaluation.lossless import compare_with_greedy, describe, require_lossless

    if not report_only:
        require_lossless(decoding, method.method)
    truncate = run.given("truncate").get("truncate", False)
    sources = [io.source_ids(model, line, truncate, io.name_of(path)) for line in lines]
    with progress("rows", 2 * len(lines)) as advance:
        report = compare_with_greedy(
            model, sources, decoding, numbers=[line.number for line in lines], tie=tie, progress=advance,
            **run.given("batch_size", "max_new_tokens"),
        )  # fmt: skip
    print(
        io.to_json({"method": method.method} | report.as_dict())
        if json
        else describe(report, method.method, lossless=decoding.lossless)
    )
    if not report.passed and not report_only:
        raise typer.Exit(1)


@app.command()
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
    _quiet()
    from spec2seq import training

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    loaded = training.load_recipe(recipe)
    result = training.train(loaded, out or Path("runs", loaded.name), data, max_minutes, report)
    state = "finished" if result.finished else "to be continued by the same command"
    if os.environ.get("RANK", "0") == "0":  # of the processes of `accelerate launch`, one speaks
        print(f"{result.folder}: step {result.step}, {result.minutes:.0f} minutes, {state}")


@app.command()
@with_options
def distill(
    run: RunOptions, method: MethodOptions,
    corpus: Annotated[Path, typer.Argument(help=".tsv, .jsonl or .txt (a source a line), also .gz")],
    out: Annotated[Path, typer.Option("--out", help="JSONL: source, target, tokens, reference")],
    recipe: Annotated[Path | None, typer.Option(help="take columns and filters from its data section")] = None,
    lines: Annotated[int | None, typer.Option(min=1, help="so many, spread over the usable lines")] = None,
) -> None:  # fmt: skip
    """Write a model's output for a corpus.

    What a drafter learns from. A call that was stopped goes on; `accelerate launch` shares the lines out.
    """
    from spec2seq.training.distill import distill as run_distill
    from spec2seq.training.recipe import DataConfig, load_recipe

    data = load_recipe(recipe).data if recipe else DataConfig(train=str(corpus), dev="")
    model, decoding = _load(run, method)

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    settings = run.given("batch_size", "max_new_tokens")
    done = run_distill(model, corpus, out, data, decoding, lines=lines, report=report, **settings)
    print(
        f"{done.file}: {done.lines} lines, {done.tokens} tokens, {done.tokens / max(done.seconds, 1e-9):.0f} a second"
    )


@app.command("make-drafter")
def make_drafter(
    model: Annotated[str, typer.Argument(help="folder or hub id of the model to speed up")],
    sources: Annotated[Path, typer.Option(help=".tsv, .jsonl or .txt (a source a line), also .gz")],
    out: Annotated[Path, typer.Option("--out", help="folder to write; must not exist")],
    field: Annotated[str | None, typer.Option(help="of the source (default: 0 in .tsv, source in .jsonl)")] = None,
    lines: Annotated[int | None, typer.Option(help="so many, spread over the usable lines (default: all)")] = None,
    minutes: Annotated[float, typer.Option(help="of training")] = 30.0,
    layers: Annotated[int, typer.Option(help="of the drafter")] = 1,
    block_size: Annotated[int, typer.Option(help="the most tokens of a draft")] = 6,
    dev_lines: Annotated[int, typer.Option(help="held out to choose the weights, and as many to test")] = 200,
) -> None:
    """Make a block drafter for a model.

    Distils, trains, checks that decoding with it is greedy's output, and measures the speed-up. The work lies in
    OUT.work until all is done: the same command goes on.
    """
    _quiet()
    from spec2seq.training import make_drafter as making

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    made = making.make_drafter(
        model, sources, out, field=field, lines=lines, minutes=minutes, layers=layers, block_size=block_size,
        dev_lines=dev_lines, report=report,
    )  # fmt: skip
    print(making.describe_made(made))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for the report")] = Path("out/demo"),
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
) -> None:
    """Translate the sample with every method.

    Prints a table and writes an HTML report.
    """
    _quiet()
    from spec2seq.evaluation.demo import run_demo

    run_demo(Path(bundled_model()), None, out, threads)


for command in (cli_files.prepare, cli_files.average, cli_files.score):
    app.command()(command)

importing = typer.Typer(help="Make models of other programs loadable.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(importing, name="import")


@importing.command("fairseq")
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
    _quiet()
    from spec2seq.models.fairseq import import_fairseq

    import_fairseq(checkpoint, dictionary, out, drafter=drafter, codes=bpe, moses=moses)
    print(out)


def _load(run: RunOptions, method: MethodOptions) -> "tuple[Seq2Seq, Method]":
    _quiet()
    return load(run, method)


def _quiet() -> None:
    """Stderr is for this command's own errors: the advice, bars and retries of others stay out of it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)


def _print_stats(stats: "Stats") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("count", "value", title="spec2seq")
    for name, value in stats.as_dict().items():
        if value in ({}, [], None):
            continue
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        table.add_row(name, f"{shown:.3f}" if isinstance(shown, float) else str(shown))
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
