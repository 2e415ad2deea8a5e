"""A task, a large model and perhaps a drafter: loaded, measured by several methods, and written down."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spec2seq.api import Method, Seq2Seq
from spec2seq.errors import UsageError
from spec2seq.evaluation.published import beside_published, nearest
from spec2seq.evaluation.runs import Outcome, Plan, measure, results, write_predictions
from spec2seq.evaluation.sweeps import write_sweep
from spec2seq.files import write_json, write_text
from spec2seq.from_options import load_drafter, make_method
from spec2seq.models import languages
from spec2seq.options import MethodOptions
from spec2seq.tasks import Example, Task


@dataclass(frozen=True)
class TaskRun(languages.Direction):
    """What is run and where its files go. Models are folders or ids of the hub; `batch_size` 1 and the validation
    split are what published figures are of."""

    task: Task
    out: Path
    model: str
    drafter: str | None = None
    data: Path | None = None
    split: str | None = None
    references: Path | None = None
    max_samples: int | None = None
    batch_size: int = 1
    chunk_lines: int = 32
    dtype: str = "float32"
    device: str = "cpu"
    profile: bool = False
    max_len_a: float | None = None
    max_len_b: int | None = None

    @property
    def place(self) -> dict[str, str]:
        return {"dtype": self.dtype, "device": self.device}

    @property
    def limits(self) -> dict[str, float | None]:
        return {"max_len_a": self.max_len_a, "max_len_b": self.max_len_b}

    def tokenizer(self, name: str) -> str | None:
        """The authors' own tokenizer for their checkpoints, which have none."""
        theirs = self.task.published
        return theirs.tokenizer if theirs and name in (theirs.large, theirs.unaligned, theirs.aligned) else None


Report = Callable[[str], None] | None


def evaluate(asked: TaskRun, mode: str, options: MethodOptions | None, report: Report = None) -> str:
    """Vanilla, and with `options` the method that they describe under the name `mode`. Writes results.json, results.md
    and predictions/; returns the table, original | reproduction | ours."""
    plan, outcomes, about = _measured(asked, {} if options is None else {mode: options}, report)
    rows = results(plan, outcomes)
    known = None
    if options is not None and options.method == "bild":
        defaults = {"fallback_threshold": 0.6, "rollback_threshold": 5.0 if options.policy == "compat" else 2.0}
        values = defaults | options.given(*defaults)
        known = nearest(asked.task.name, mode, *values.values())
    shown = beside_published(rows, known)
    write_json(asked.out / "results.json", {"about": about, "rows": rows})
    write_text(asked.out / "results.md", shown + "\n")
    return shown


def sweep(asked: TaskRun, grid: Mapping[str, MethodOptions], report: Report = None) -> list[Path]:
    """Vanilla and every method of the grid. Writes sweep.json, sweep.md, frontier.html and predictions/; returns the
    first three."""
    plan, outcomes, about = _measured(asked, grid, report)
    return write_sweep(asked.out, about, results(plan, outcomes))


def published_names(task: Task, mode: str, model: str | None, drafter: str | None) -> tuple[str, str | None]:
    """Both models, the authors' where none is given. Raises UsageError where there is none."""
    theirs = task.published
    model = model or (theirs.large if theirs else None)
    if mode != "vanilla":
        drafter = drafter or (getattr(theirs, mode) if theirs else None)
    for name, value in (("model", model), ("drafter", drafter)):
        if value is None and (name == "model" or mode != "vanilla"):
            raise UsageError(f"--{name} is not set, and none is published for {task.name}; give a folder or an id")
    return model, drafter


def _measured(
    asked: TaskRun, options: Mapping[str, MethodOptions], report: Report
) -> tuple[Plan, dict[str, Outcome], dict[str, Any]]:
    task = asked.task
    examples = task.examples(asked.split, asked.data, asked.references, asked.max_samples)
    own = {"tokenizer": asked.tokenizer(asked.model)} | asked.direction | asked.limits
    large = Seq2Seq.from_pretrained(asked.model, **own, **asked.place)
    drafter = None
    if asked.drafter is not None:
        drafter = load_drafter(asked.drafter, large, asked.tokenizer(asked.drafter), asked.direction, **asked.place)
    methods: dict[str, Method] = {name: make_method(one, drafter) for name, one in options.items()}
    plan = _plan(large, asked, examples)
    about = {"task": task.name, "split": asked.split or task.split, "model": asked.model, "drafter": asked.drafter,
             "weights": large.fingerprint(), **asked.place, **asked.direction,
             **asked.limits}  # fmt: skip
    # A setting's own values are in its parts' name where a grid made them; one alone must not change in its folder.
    alone = {name: repr(vars(one)) for name, one in options.items()} if set(options) & {"aligned", "unaligned"} else {}
    outcomes = measure(large, plan, methods, asked.out, about | alone, report)
    write_predictions(asked.out, plan, outcomes)
    return plan, outcomes, about | {"metric": plan.metric, "lines": len(examples), "batch_size": plan.batch_size}


def _plan(model: Seq2Seq, asked: TaskRun, examples: list[Example]) -> Plan:
    task, positions = asked.task, model.model.architecture.max_positions
    longest, cap = task.max_source_tokens, task.max_new_tokens
    if positions is not None:
        longest, cap = min(longest, positions), min(cap, positions)
    end = model.model.architecture.eos_token_id
    sources = [languages.cut(model.encode_text(example.source), longest, end) for example in examples]
    references = [example.reference for example in examples]
    return Plan(sources, references, task.metric, asked.batch_size, cap, asked.chunk_lines, asked.profile)
