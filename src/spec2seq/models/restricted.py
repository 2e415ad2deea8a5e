"""Read a PyTorch checkpoint without running code from it.

A pickle names functions and classes, and loading calls them. Here only those that rebuild tensors and plain
containers are real; classes of the programs that write checkpoints become empty holders of their state, and every
other name is refused.
"""

import collections
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from spec2seq.errors import Spec2SeqError, first_line

HOLDERS = ("argparse", "omegaconf", "fairseq", "fairseq_cli", "numpy", "typing", "enum", "pathlib")  # top-level modules
REAL: dict[str, Any] = {
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": collections.defaultdict,
    "collections.Counter": collections.Counter,
    "torch._utils._rebuild_tensor": torch._utils._rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
} | {f"torch.{name}": getattr(torch, name) for name in ("float16", "float32", "float64", "int32", "int64")}
REAL |= {
    f"{module}.{kind.__name__}": kind
    for module in ("builtins", "__builtin__")
    for kind in (dict, list, set, frozenset, tuple, int, float, complex, bool, str, bytes, bytearray, slice, range)
}
REAL["__builtin__.long"] = int
REAL["__builtin__.unicode"] = str


class Held:
    """The state of an object whose class is not wanted."""

    def __init__(self, *arguments: Any, **named: Any):
        self.arguments = arguments
        self.__dict__.update(named)

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})

    def __setitem__(self, key: Any, value: Any) -> None:
        """For classes that are dictionaries."""

    def append(self, value: Any) -> None:
        """For classes that are lists."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in REAL:
            return REAL[full]
        if module.partition(".")[0] in HOLDERS:
            return type(name, (Held,), {})
        raise Spec2SeqError(f"it asks for {full}, which is not allowed; allowed: tensors, containers and settings")


def _load(file: Any, **settings: Any) -> Any:
    return _Unpickler(file, **settings).load()


_PICKLE = SimpleNamespace(
    __name__="restricted", Unpickler=_Unpickler, load=_load
)  # for torch.load: looks like a module


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What `torch.save` wrote, in its present or in its legacy format, on the CPU.

    Raises Spec2SeqError, naming the file, for one that cannot be read, is no dictionary, or asks for anything else than
    tensors, containers and settings.
    """
    path = Path(path)
    if not path.is_file():
        raise Spec2SeqError(f"{path}: no such file")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise Spec2SeqError("it is a TorchScript program; allowed: a checkpoint of weights")
        found = torch.load(path, map_location="cpu", pickle_module=_PICKLE, weights_only=False)
    except Exception as error:  # damaged or hostile files raise anything
        raise Spec2SeqError(f"{path}: not readable as a checkpoint: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise Spec2SeqError(f"{path}: holds a {type(found).__name__}; allowed: a dictionary")
    return found
