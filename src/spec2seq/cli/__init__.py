"""The command `spec2seq`. Each subcommand calls one library function; nothing heavy is imported before it has to."""

import contextlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from spec2seq.cli import bench, decode, files, runs, speech, training
from spec2seq.errors import Spec2SeqError
from spec2seq.version import __version__

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


for command in (
    decode.translate, decode.generate, speech.transcribe, decode.verify_lossless, decode.demo, bench.bench,
    bench.report, training.train, training.distill, training.make_drafter, training.shortlist, files.prepare,
    files.average, files.score, files.pairs, runs.calibrate, runs.evaluate, runs.sweep,
):  # fmt: skip
    app.command(command.__name__.replace("_", "-"))(command)

importing = typer.Typer(help="Make models of other programs loadable.", no_args_is_help=True, rich_markup_mode=None)
importing.command("fairseq")(training.import_fairseq)
app.add_typer(importing, name="import")
