"""What runs a model: PyTorch, or the compiled executor where there is one; and in int8 or not."""

import warnings

import torch
from torch import nn

from spec2seq.config import check_choice
from spec2seq.errors import UsageError
from spec2seq.models import native
from spec2seq.models.quantize import QuantizedLinear, quantize
from spec2seq.models.transformers_model import TransformersModel
from spec2seq.options import DTYPES, EXECUTORS

WEIGHTS = {name: torch.float32 if name == "int8" else getattr(torch, name) for name in DTYPES}  # while loading


def check(dtype: str, executor: str) -> None:
    """Raises UsageError for an executor that there is not, or that does not run this dtype."""
    check_choice("executor", executor, EXECUTORS)
    if executor == "native" and dtype not in ("float32", "int8"):
        raise UsageError(f"executor native runs float32 and int8; dtype is {dtype!r}")


def is_int8(model: nn.Module) -> bool:
    return any(isinstance(module, QuantizedLinear) for module in model.modules())


def prepare(model: nn.Module, dtype: str, executor: str) -> None:
    """Make a loaded model int8 where asked, and attach the compiled executor where asked and possible, or let the loop
    run as graphs.

    Raises Spec2SeqError where executor "native" is not possible. "auto" warns where int8 has to do without it.
    """
    if isinstance(model, TransformersModel):
        if dtype == "int8" or executor == "native":
            asked = "dtype int8" if dtype == "int8" else "executor native"
            raise UsageError(f"{asked} is not for models that run in Transformers' own modules")
        return
    model.graphs = executor == "auto" and model.device.type == "cuda"  # of iterations of the loop
    if dtype == "int8" and not is_int8(model):
        if model.device.type != "cpu":
            raise UsageError(f"dtype int8 is for CPUs; device is {str(model.device)!r}")
        quantize(model)
    if executor == "torch" or (model.device.type, model.dtype) != ("cpu", torch.float32):
        if executor == "native":
            raise UsageError(f"executor native is for CPUs; device is {str(model.device)!r}")
        return
    reason = native.unavailable(model.architecture)
    if not reason or executor == "native":
        native.attach(model)
    elif dtype == "int8":
        warnings.warn(f"int8 without compiled kernels is slow: {reason}", stacklevel=3)
