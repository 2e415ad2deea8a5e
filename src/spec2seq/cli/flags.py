"""What subcommands share: a flag for every line of the table of options, loading, and a quiet stderr."""

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

from spec2seq.errors import UsageError
from spec2seq.from_options import load
from spec2seq.option import Option
from spec2seq.options import OPTIONS, UNSET, MethodOptions, RunOptions, resolve

if TYPE_CHECKING:
    from spec2seq.api import Method, Seq2Seq
    from spec2seq.decoding.stats import Stats

Command = Callable[..., None]
StatsFlag = Annotated[bool, typer.Option("--stats", help="a table of counts on stderr at the end")]

TASK = "transcribe"
LanguageFlag = Annotated[str | None, typer.Option(help="code or English name (default: what each sounds like)")]
TaskFlag = Annotated[
    str | None,
    typer.Option(
        metavar="transcribe|translate",
        help="write what is said, or that in English (default: the model's, else transcribe)",
    ),
]
TimestampsFlag = Annotated[
    bool | None,
    typer.Option("--timestamps/--no-timestamps", show_default=False,
                 help="when something was said (default: where a sound is longer than the model hears at once)"),
]  # fmt: skip


def with_options(command: Command, without: tuple[str, ...] = ()) -> Command:
    """Give a command a flag for every line of the table but those of `without`, and `--config`; it gets `run` and
    `method`."""
    own = [p for p in inspect.signature(command).parameters.values() if p.name not in ("run", "method")]
    flags = [_parameter(option) for option in OPTIONS.values() if option.name not in without]
    about = typer.Option("--config", metavar="FILE", help="YAML or JSON with the options below as keys; flags win")
    config = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None,
                               annotation=Annotated[Path | None, about])  # fmt: skip

    @functools.wraps(command)
    def wrapper(config: Path | None, **values: Any) -> None:
        flags = {name: values.pop(name) for name in OPTIONS if name not in without}
        run, method = resolve(flags, config)
        for name in without:
            if (vars(run) | vars(method))[name] is not UNSET:
                raise UsageError(f"{config}: {name} does nothing in {command.__name__}")
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


def load_all(run: RunOptions, method: MethodOptions) -> "tuple[Seq2Seq, Method]":
    quiet()
    model, decoding = load(run, method)
    from spec2seq.models.transformers_model import TransformersModel, notice  # with it comes PyTorch

    if isinstance(model.model, TransformersModel):
        report(notice(model.config.model_type))
    return model, decoding


def quiet() -> None:
    """Stderr is for this command's own errors: the advice, bars and retries of others stay out of it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)


def report(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def result(line: str) -> None:
    """What a command that `accelerate launch` may start has to say: of its processes, one speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(line)


def print_stats(stats: "Stats") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("count", "value", title="spec2seq")
    for name, value in stats.as_dict().items():
        if value in ({}, [], None):
            continue
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        table.add_row(name, f"{shown:.3f}" if isinstance(shown, float) else str(shown))
    Console(stderr=True).print(table)
