"""The subcommands that run tasks: calibrate, evaluate, sweep."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spec2seq.cli.flags import load_all, quiet, report, result, with_options
from spec2seq.config import check_choice
from spec2seq.errors import UsageError
from spec2seq.options import DTYPES, OPTIONS, POLICIES, UNSET, MethodOptions, RunOptions

if TYPE_CHECKING:
    from spec2seq.evaluation.task_runs import TaskRun
    from spec2seq.tasks import Task

MODES = ("vanilla", "unaligned", "aligned")
METRICS = ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "rougeLsum")
List = Annotated[str | None, typer.Option(metavar="LIST", help="values with commas, such as 2,5; none: without")]


def _task_flags(
    task: Annotated[str, typer.Option(help="wmt14-de-en, wmt14-en-de, wmt16-en-ro, wmt16-ro-en, iwslt2017-de-en, xsum, "
                                      "cnn_dailymail, java_code_api_generation, or local")],
    data: Annotated[Path | None, typer.Option(help="a file (.tsv, .jsonl, .txt with --references; also .gz), or the "
                                              "folder of the hub's copies (default: $SPEC2SEQ_DATA)")] = None,
    split: Annotated[str | None, typer.Option(help="of the data set (default: the published one; calibrate: train)")]
    = None,
    source_field: Annotated[str | None, typer.Option(help="field or column, where it is not the task's")] = None,
    target_field: Annotated[str | None, typer.Option(help="likewise")] = None,
    metric: Annotated[str | None, typer.Option(metavar="|".join(METRICS), help="(default: the task's)")] = None,
) -> None:  # fmt: skip
    """The flags of every command here."""


def _run_flags(
    out: Annotated[Path, typer.Option("--out", help="folder of the run; the same command goes on with it")],
    model: Annotated[str | None, typer.Option(help="the large one (default: the task's published one)")] = None,
    drafter: Annotated[str | None, typer.Option(help="the little one, or a block drafter (default: likewise)")] = None,
    prefix: Annotated[str | None, typer.Option(help="what stands before every source (default: the task's)")] = None,
    src_lang: Annotated[str | None, typer.Option(help="of a multilingual model, as its tokenizer names it")] = None,
    tgt_lang: Annotated[str | None, typer.Option(help="likewise")] = None,
    max_len_a: Annotated[
        float | None,
        typer.Option(
            help="an output has at most so many times its source's tokens, plus --max-len-b (default: no such limit)"
        ),
    ] = None,
    max_len_b: Annotated[int | None, typer.Option(help="see --max-len-a")] = None,
    references: Annotated[Path | None, typer.Option(help="a target a line, where --data has a source a line")] = None,
    max_samples: Annotated[int | None, typer.Option(min=1, help="only the first lines")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="rows in flight")] = 1,
    chunk_lines: Annotated[int, typer.Option(min=1, help="what a stopped run may have to do again")] = 32,
    dtype: Annotated[str, typer.Option(metavar="|".join(DTYPES))] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="time phases; slower")] = False,
) -> None:
    """The flags of evaluate and sweep."""


def _with_flags(*groups: Callable[..., None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of `groups`; it gets them as mappings, in its first parameters."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        shared = [list(inspect.signature(group).parameters.values()) for group in groups]
        own = list(inspect.signature(command).parameters.values())[len(groups) :]

        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            asked = [{p.name: values.pop(p.name) for p in group} for group in shared]
            command(*asked, **values)

        flags = [p for group in shared for p in group] + own
        wrapper.__signature__ = inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in flags])
        wrapper.__annotations__ = {}
        return wrapper

    return decorate


@with_options
@_with_flags(_task_flags)
def calibrate(
    asked: dict[str, Any], run: RunOptions, method: MethodOptions,
    out: Annotated[Path, typer.Option("--out", help="JSONL: source, target, tokens, reference")],
    lines: Annotated[int | None, typer.Option(min=1, help="so many, spread over the usable lines")] = None,
) -> None:  # fmt: skip
    """Write a model's output for a task's inputs.

    What a little model is aligned with. A call that was stopped goes on; `accelerate launch` shares the lines out.
    """
    from spec2seq.training.distill import distill

    task = _task(asked, run.given("prefix").get("prefix"))
    path = task.file(asked["split"] or "train", asked["data"])
    model, decoding = load_all(dataclasses.replace(run, prefix=UNSET), method)  # the task's sources have it
    cap = min(task.max_new_tokens, model.model.architecture.max_positions or task.max_new_tokens)
    settings = {"max_new_tokens": cap} | run.given("batch_size", "max_new_tokens")
    done = distill(
        model, path, out, task.columns(path, truncate=True), decoding, lines=lines, report=report, **settings
    )
    result(f"{done.file}: {done.lines} lines, {done.tokens} tokens")


@_with_flags(_task_flags, _run_flags)
def evaluate(
    asked: dict[str, Any], run: dict[str, Any],
    mode: Annotated[str, typer.Option(metavar="|".join(MODES), help="which little model there is")] = "vanilla",
    preset: Annotated[str | None, typer.Option(help="published thresholds: no-drop or one-point")] = None,
    fallback: Annotated[str | None, typer.Option(metavar="NUMBER|none", help="(default: 0.6)")] = None,
    rollback: Annotated[
        str | None, typer.Option(metavar="NUMBER|none", help="in nats (default: 2.0; compat: 5.0)")
    ] = None,
    max_draft_tokens: Annotated[str | None, typer.Option(metavar="INTEGER|auto", help="(default: 10)")] = None,
    verify_tail: Annotated[str | None, typer.Option(metavar="true|false", help="(default: false)")] = None,
    policy: Annotated[str | None, typer.Option(metavar="|".join(POLICIES), help="(default: paper)")] = None,
) -> None:  # fmt: skip
    """Score a large and a little model on a task.

    Vanilla is the large model alone, on the same engine with the same limits, measured beside. Prints a table,
    original | reproduction | ours; writes results.json and predictions/.
    """
    check_choice("--mode", mode, MODES)
    flags = {"fallback_threshold": fallback, "rollback_threshold": rollback, "max_draft_tokens": max_draft_tokens,
             "verify_tail": verify_tail, "policy": policy}  # fmt: skip
    given = {name: OPTIONS[name].parse(value, OPTIONS[name].flag) for name, value in flags.items() if value is not None}
    if mode == "vanilla" and (given or preset or run["drafter"]):
        raise UsageError("--mode is vanilla, which takes no drafter and no thresholds; allowed: unaligned, aligned")
    if preset is not None and (fallback is not None or rollback is not None):
        raise UsageError("--preset sets --fallback and --rollback; give the one or the others")
    if preset is not None:
        from spec2seq.evaluation.published import point

        known = point(asked["task"], mode, preset)
        given |= {"fallback_threshold": known.fallback, "rollback_threshold": float(known.rollback)}
    job = _job(asked, run, mode)
    options = None if mode == "vanilla" else MethodOptions(method="bild", drafter=job.drafter, **given)
    from spec2seq.evaluation import task_runs

    print(task_runs.evaluate(job, mode, options, report))


@_with_flags(_task_flags, _run_flags)
def sweep(
    asked: dict[str, Any], run: dict[str, Any],
    method: Annotated[str, typer.Option(metavar="bild|specdec")] = "bild",
    mode: Annotated[str, typer.Option(metavar="unaligned|aligned", help="the published drafter")] = "unaligned",
    fallback: List = None, rollback: List = None, max_draft_tokens: List = None, verify_tail: List = None,
    beta: List = None, tau: List = None, block_size: List = None,
) -> None:  # fmt: skip
    """Measure every combination of parameters on a task.

    Writes sweep.json, sweep.md and frontier.html. Another call with the same folder goes on, and may add points.
    """
    check_choice("--method", method, ("bild", "specdec"))
    check_choice("--mode", mode, MODES[1:])
    job = _job(asked, run, mode)
    values = {"fallback_threshold": fallback, "rollback_threshold": rollback, "max_draft_tokens": max_draft_tokens,
              "verify_tail": verify_tail, "beta": beta, "tau": tau, "block_size": block_size}  # fmt: skip
    from spec2seq.evaluation import sweeps, task_runs

    for path in task_runs.sweep(job, sweeps.grid(method, job.drafter, values), report):
        print(path)


def _task(asked: dict[str, Any], prefix: str | None) -> "Task":
    from spec2seq.tasks import task_named

    split, data = asked["split"], asked["data"]
    if split is not None and data is not None and data.is_file():
        raise UsageError(f"--split is {split!r}; it does nothing where --data is a file")
    if asked["metric"] is not None:
        check_choice("--metric", asked["metric"], METRICS)
    return task_named(asked["task"]).of_fields(asked["source_field"], asked["target_field"], prefix, asked["metric"])


def _job(asked: dict[str, Any], run: dict[str, Any], mode: str) -> "TaskRun":
    quiet()
    import torch

    from spec2seq.evaluation.task_runs import TaskRun, published_names

    run = dict(run)
    task = _task(asked, run.pop("prefix"))
    threads = run.pop("threads")
    if threads is not None:
        torch.set_num_threads(threads)
    run["model"], run["drafter"] = published_names(task, mode, run["model"], run["drafter"])
    return TaskRun(task, data=asked["data"], split=asked["split"], **run)
