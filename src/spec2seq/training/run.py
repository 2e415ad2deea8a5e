"""One training run from recipe to final folder; called again, it goes on where it was."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spec2seq.errors import UsageError, missing_extra
from spec2seq.training.recipe import Recipe


@dataclass(frozen=True)
class TrainResult:
    """`folder` is the final model if `finished`, else the folder of the run, to be continued by the same call."""

    folder: Path
    finished: bool
    step: int
    tokens: int
    minutes: float
    summary: dict[str, Any] | None = None


def train(
    recipe: Recipe,
    out: str | Path,
    data_dir: str | Path | None = None,
    max_minutes: float | None = None,
    report: Callable[[str], None] | None = None,
) -> TrainResult:
    """Fit the recipe's model and write it to `out`/final. A run that was stopped or killed goes on from `out`.

    Args:
        recipe: what to train; `load_recipe` reads one.
        out: folder of the run: checkpoints/, cache/, vocabulary/, log.txt, recipe.yaml and at the end final/.
        data_dir: where the data files are; default $SPEC2SEQ_DATA, else the paths as the recipe has them.
        max_minutes: ends this call cleanly after so many minutes of training; calling again goes on.
        report: takes each line of the log as well.

    Raises UsageError for wrong input, Spec2SeqError for a missing package.
    """
    for package in ("accelerate", "sentencepiece", "transformers"):
        try:
            __import__(package)
        except ImportError:
            raise missing_extra(package, "train") from None
    if max_minutes is not None and not max_minutes > 0:
        raise UsageError(f"max_minutes is {max_minutes}; allowed: above 0")
    from spec2seq.training.drafter_session import CachedDrafterSession
    from spec2seq.training.glancing_session import GlancingSession
    from spec2seq.training.session import Session

    kind = CachedDrafterSession if recipe.cached_drafter else GlancingSession if recipe.paper_drafter else Session
    return kind(recipe, Path(out), data_dir, max_minutes, report).run()
