"""The subcommands that decode: translate, generate, verify-lossless, demo."""

import contextlib
import functools
import itertools
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from spec2seq import documents, io
from spec2seq.cli.flags import StatsFlag, load_all, print_stats, quiet, with_options
from spec2seq.cli.shares import own_share
from spec2seq.config import check_choice
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.evaluation.progress import progress
from spec2seq.lines import Rows, check_lines, source_ids
from spec2seq.options import MethodOptions, RunOptions, bundled_model

InputFile = Annotated[Path | None, typer.Argument(metavar="FILE", help="UTF-8; stdin without it", show_default=False)]
OutputFile = Annotated[Path | None, typer.Option("--output", "-o", help="write here when all is done, not to stdout")]
DocumentFlag = Annotated[
    str | None,
    typer.Option(metavar="|".join(documents.UNITS), help="long texts: cut each into sentences, or into windows of as "
                 "many as fit, and join the outputs again"),
]  # fmt: skip
WindowFlag = Annotated[
    int | None,
    typer.Option(help="with --document: the most tokens of a piece (default: the model's positions, at most 512)"),
]
TraceFlag = Annotated[bool, typer.Option("--trace", help="which model wrote each token: d(rafter) or v(erifier)")]


@with_options
def translate(
    run: RunOptions, method: MethodOptions, file: InputFile = None, output: OutputFile = None,
    json: Annotated[bool, typer.Option("--json", help="one object a line: text, tokens, stats")] = False,
    document: DocumentFlag = None, window: WindowFlag = None, trace: TraceFlag = False, stats: StatsFlag = False,
) -> None:  # fmt: skip
    """Translate lines.

    One line out for each line in, in order; an empty line gives an empty line. With --n-best, a list as of Moses:
    number of the line from 0 ||| text ||| score. Files whose names end in .gz are gzipped, in and out.
    """
    if trace and not json:
        raise UsageError("--trace does nothing without --json")

    def shape(line: io.Line, row: Any) -> str:
        if json:
            return io.to_json(io.row_object(row, "text", trace))
        return io.n_best(row, line.number - 1) if method.given("n_best") else io.one_line(row.text)

    _generate(run, method, file, output, io.read_lines, shape, trace, stats, document, window)


@with_options
def generate(
    run: RunOptions, method: MethodOptions, file: InputFile = None, output: OutputFile = None,
    field: Annotated[str, typer.Option(help="the field that holds the source")] = "text",
    document: DocumentFlag = None, window: WindowFlag = None, trace: TraceFlag = False, stats: StatsFlag = False,
) -> None:  # fmt: skip
    """Run JSONL through a model.

    Each object comes out with output, tokens and stats added. Files whose names end in .gz are gzipped, in and out.
    """

    def shape(line: io.Line, row: Any) -> str:
        return io.to_json((line.fields or {}) | io.row_object(row, "output", trace))

    read = functools.partial(io.read_objects, field=field)
    _generate(run, method, file, output, read, shape, trace, stats, document, window)


def _generate(run, method, file, output, read, shape, trace: bool, show_stats: bool, document, window) -> None:
    """Run every line that `read` gives through the model and write what `shape` makes of its row."""
    from spec2seq.decoding.stats import Stats

    _check_document(document, window, method)
    path = None if file is None or str(file) == "-" else file
    counts, where = Stats(), io.name_of(path)
    share = own_share(path, output, show_stats)
    with io.writer(output if share is None else share.part(share.index)) as write:
        if path is not None:
            io.check_readable(path)  # before the seconds that loading takes
        model, decoding = load_all(run if share is None else share.place(run), method)
        keep: dict[str, Any] = {"truncate": run.given("truncate").get("truncate", False)}
        if document is not None:
            keep["cut"] = functools.partial(documents.pieces, model=model, unit=document, window=window)
        total = check_lines(model, read(path), where=where, **keep) if io.is_rereadable(path) else None
        settings = run.given("batch_size", "max_new_tokens")
        if path is None and sys.stdin.isatty():
            settings.setdefault("batch_size", 1)  # somebody types and waits for each line
        lines = read(path)
        if share is not None:
            first, end = share.stretch(total)
            lines, total = itertools.islice(lines, first, end), end - first
        rows = Rows(model, decoding, lines, where, stats=counts, trace=trace, **keep, **settings)
        hidden = output is None and sys.stdout.isatty()  # a bar would run through the lines
        with contextlib.nullcontext(lambda: None) if hidden else progress("lines", total) as advance:
            for line, row in rows:
                write(shape(line, row))
                advance()
    if share is not None:
        share.join()
    if show_stats:
        print_stats(counts)


def _check_document(document: str | None, window: int | None, method: MethodOptions) -> None:
    if document is None:
        if window is not None:
            raise UsageError("--window does nothing without --document")
        return
    check_choice("--document", document, documents.UNITS)
    if method.given("n_best"):
        raise UsageError("--n-best does nothing with --document: the lists of several pieces make none")


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
    model, decoding = load_all(run, method)
    from spec2seq.evaluation.lossless import compare_with_greedy, describe, require_lossless

    if not report_only:
        require_lossless(decoding, method.method)
    truncate = run.given("truncate").get("truncate", False)
    sources = [source_ids(model, line, truncate, io.name_of(path)) for line in lines]
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


def demo(
    out: Annotated[Path, typer.Option(help="folder for the report")] = Path("out/demo"),
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
) -> None:
    """Translate the sample with every method.

    Prints a table and writes an HTML report.
    """
    quiet()
    from spec2seq.evaluation.demo import run_demo

    run_demo(Path(bundled_model()), None, out, threads)
