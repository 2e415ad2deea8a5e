"""Checkpoints that count only when whole, the choice of which to keep, and their weights."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.files import write_json
from spec2seq.training.clock import Clock

MARKER = "whole.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint written to its end, and how far the run was: steps, batches of all processes, target tokens and
    seconds. `score` is dev BLEU (or −NLL), None if not measured."""

    path: Path
    step: int
    batches: int
    tokens: int
    seconds: float
    score: float | None


def mark_whole(path: Path, clock: Clock, score: float | None) -> None:
    """Declare that everything of the checkpoint is on disk; until then `whole_checkpoints` does not see it."""
    counts = {"step": clock.step, "batches": clock.batches, "tokens": clock.tokens}
    write_json(path / MARKER, counts | {"seconds": clock.elapsed(), "score": score})


def whole_checkpoints(folder: Path) -> list[Checkpoint]:
    """All whole checkpoints, oldest first."""
    found = []
    for marker in folder.glob(f"checkpoint-*/{MARKER}"):
        values = json.loads(marker.read_text(encoding="utf-8"))
        # What an earlier version wrote lacks batches; without accumulation they are the steps.
        found.append(Checkpoint(marker.parent, **({"batches": values["step"]} | values)))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def best_checkpoint(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """The one with the highest score; None if none was measured, or was a number."""
    measured = [one for one in checkpoints if one.score is not None and math.isfinite(one.score)]
    return max(measured, key=lambda checkpoint: checkpoint.score) if measured else None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the last `keep` whole checkpoints and the best; only the last keeps its optimizer state."""
    whole = whole_checkpoints(folder)
    kept = {checkpoint.path for checkpoint in whole[-keep:]}
    best = best_checkpoint(whole)
    if best is not None:
        kept.add(best.path)
    for path in folder.glob("checkpoint-*"):
        if path not in kept:
            (path / MARKER).unlink(missing_ok=True)  # first, so that a kill here leaves nothing that looks whole
            shutil.rmtree(path)
        elif whole and path != whole[-1].path:
            (path / "optimizer.pt").unlink(missing_ok=True)


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """The weights of one folder, of all its safetensors files.

    Raises UsageError if there are none, Spec2SeqError for a file that is broken.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = weight_files(path)
    if not files:
        raise UsageError(f"{path}: no weights; allowed: a folder with *.safetensors")
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except SafetensorError as error:
            raise Spec2SeqError(f"{file}: not readable as safetensors: {error}") from None
    return weights


def require_fit(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise Spec2SeqError naming the first weight that is missing in `found`, unknown, or of another shape."""
    for name in [*wanted, *found]:
        if name not in found or name not in wanted:
            raise Spec2SeqError(f"{where}: {name} is {'missing' if name in wanted else 'unknown'}")
        if found[name].shape != wanted[name].shape:
            raise Spec2SeqError(f"{where}: {name} is {[*found[name].shape]}; needed: {[*wanted[name].shape]}")


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a folder, in the order of their names."""
    return sorted(path.glob("*.safetensors"))
