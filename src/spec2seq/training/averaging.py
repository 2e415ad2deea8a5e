"""The arithmetic mean of checkpoints: of state dicts, and of whole model folders."""

import json
import shutil
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.training.checkpoints import weight_files, weights_of

# Of other formats and of the optimizer: copied, they would belong to the first input alone.
STALE = {".safetensors", ".bin", ".pt", ".pth"}
# What differs between configurations without changing what the weights mean.
_UNIMPORTANT = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}


def average_states(
    states: Iterable[dict[str, torch.Tensor]], names: Iterable[Any] | None = None, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """The mean of state dicts of one architecture, summed in float32 (float64 for float64) and stored in `dtype`.

    Without `dtype` each tensor keeps its own. Tensors that are not floating point must be equal. One state at a time
    is read from `states`; `names` are what errors call them, "state 1", "state 2"… if not given.

    Raises Spec2SeqError for the first name, shape, dtype or integer that differs from the first state's.
    """
    calls = names or (f"state {number}" for number in count(1))
    first: dict[str, torch.Tensor] = {}
    total: dict[str, torch.Tensor] = {}
    read, name_of_first = 0, None
    for read, (name, state) in enumerate(zip(calls, states, strict=False), 1):
        if read == 1:
            # Clones, because tied tensors share memory and the sums are made in place.
            first, name_of_first = state, name
            total = {key: _wide(tensor).clone() for key, tensor in state.items() if tensor.is_floating_point()}
            continue
        _require_same(first, state, f"{name} differs from {name_of_first}")
        for key, tensor in total.items():
            tensor += _wide(state[key])
    if not read:
        raise ValueError("no states to average")
    return {
        key: (total[key] / read).to(dtype or tensor.dtype) if key in total else tensor for key, tensor in first.items()
    }


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _require_same(first: dict[str, torch.Tensor], other: dict[str, torch.Tensor], where: str) -> None:
    for key in [*first, *other]:
        if key not in first or key not in other:
            raise Spec2SeqError(f"{where}: {key} is in only one of them; allowed: the same names")
        a, b = first[key], other[key]
        if a.shape != b.shape or a.dtype != b.dtype:
            shapes = " and ".join(f"{list(t.shape)} of {str(t.dtype).removeprefix('torch.')}" for t in (a, b))
            raise Spec2SeqError(f"{where}: {key} is {shapes}; allowed: the same shape and dtype")
        if not a.is_floating_point() and not torch.equal(a, b):
            raise Spec2SeqError(f"{where}: {key} is not floating point and not equal; it has no mean")


def average_folders(folders: Sequence[Path], out: Path, dtype: torch.dtype | None = None) -> int:
    """Write the mean of model folders as a new folder `out`; the other files are the first folder's.

    Its subfolders and other weight files are left out. `out` takes its name when all is written. Returns the number
    of tensors. Raises UsageError for fewer than two folders or an `out` that exists, Spec2SeqError for folders of
    different models.
    """
    if len(folders) < 2:
        raise UsageError(f"{len(folders)} folder to average; allowed: at least 2")
    if out.exists():
        raise UsageError(f"--out {out}: exists already; allowed: a new folder")
    _require_same_config(folders)
    mean = average_states((weights_of(folder) for folder in folders), folders, dtype)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for file in folders[0].iterdir():
            if file.is_file() and file.suffix not in STALE:
                shutil.copy2(file, partial)
        _save(mean, folders[0], partial)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return len(mean)


def _save(weights: dict[str, torch.Tensor], like: Path, folder: Path) -> None:
    """In the same files as `like`, so that its index of shards stays true."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    for file in weight_files(like):
        with safe_open(file, "pt") as tensors:
            kept, metadata = list(tensors.keys()), tensors.metadata()
        save_file({key: weights[key].contiguous() for key in kept}, folder / file.name, metadata)


def _require_same_config(folders: Sequence[Path]) -> None:
    """Weights of equal shapes can still mean different things: another number of heads, another activation."""
    first = _config(folders[0])
    for folder in folders[1:]:
        other = _config(folder)
        for key in [*first, *other]:
            if key not in _UNIMPORTANT and first.get(key) != other.get(key):
                raise Spec2SeqError(
                    f"{folder} differs from {folders[0]}: config.json: {key} is {other.get(key)!r} and "
                    f"{first.get(key)!r}; allowed: the same architecture"
                )


def _config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: no readable config.json ({error}); allowed: the folder of a model") from None
