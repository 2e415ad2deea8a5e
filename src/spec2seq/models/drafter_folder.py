"""The folder of a trained drafter: `config.json`, which says its kind, and `model.safetensors`."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import nn

from spec2seq.config import build, load_mapping
from spec2seq.errors import Spec2SeqError

Model = TypeVar("Model", bound=nn.Module)

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@contextlib.contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder that takes the name `folder` at the end: it appears whole or not at all.

    Raises Spec2SeqError if `folder` exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise Spec2SeqError(f"{folder}: exists already")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.{os.getpid()}"
    temporary.mkdir()  # not tempfile's: its folders can be read by their owner alone
    try:
        yield temporary
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def save(folder: str | Path, kind: str, config: dict[str, Any], model: nn.Module) -> None:
    """Write a drafter of `kind`. Raises Spec2SeqError if `folder` exists."""
    with whole_folder(folder) as temporary:
        text = json.dumps({"drafter_type": kind} | config, indent=2)
        (temporary / CONFIG).write_text(text + "\n", encoding="utf-8")
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        safetensors.torch.save_file(state, temporary / WEIGHTS)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The configuration with its `drafter_type`. Raises Spec2SeqError if `folder` holds no drafter."""
    path = Path(folder, CONFIG)
    if not path.is_file():
        raise Spec2SeqError(f"{folder}: no drafter here: {CONFIG} is missing")
    values = load_mapping(path)
    if "drafter_type" not in values:
        raise Spec2SeqError(f"{path}: no drafter_type; allowed: the folder of a trained block drafter")
    return values


def load(folder: str | Path, kind: str, config: type[Any], build_model: Callable[[Any], Model]) -> Model:
    """The drafter of `kind` in `folder`, built from its configuration of class `config`, in evaluation mode.

    Raises Spec2SeqError for another kind, a broken configuration, or tensors that do not fit it exactly.
    """
    values = read_config(folder)
    found = values.pop("drafter_type")
    if found != kind:
        raise Spec2SeqError(f"{folder}: drafter_type is {found!r}; allowed: {kind}")
    with torch.device("meta"):
        model = build_model(build(config, values, str(Path(folder, CONFIG))))
    path = Path(folder, WEIGHTS)
    if not path.is_file():
        raise Spec2SeqError(f"{folder}: no drafter here: {WEIGHTS} is missing")
    try:
        model.load_state_dict(safetensors.torch.load_file(path), assign=True)
    except Exception as error:  # a broken file, missing or further tensors, or other shapes
        raise Spec2SeqError(f"{path}: does not fit {CONFIG}: {' '.join(str(error).split())}") from None
    return model.eval()
