"""A device that is made up: its tensors have their numbers on the host, and nobody may take them for the host's.

What a GPU refuses is refused here: operators over tensors of both. What it would wait for is recorded: numbers that
are read (`reads`), and tensors that come from the host or go there (`copies`). A function can be captured as in a CUDA
graph, which does the same again with the same memory (`Graph`).
"""

import contextlib
import copy
from collections.abc import Iterator

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "elsewhere"
# Their results' shapes depend on numbers, or they are numbers; a GPU has to be waited for.
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique2",
         "unique_consecutive", "repeat_interleave", "bincount"}  # fmt: skip
COPIES = {"_to_copy", "copy_"}
if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this PyTorch cannot make up a device", allow_module_level=True)
backend_registration._setup_privateuseone_for_python_backend(NAME)
reads: list[str] = []
copies: list[str] = []
_graph: "Graph | None" = None  # that is being captured


class There(torch.Tensor):
    """A tensor of the device; `held` is the host's that has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, real):
        return torch.Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip

    def __init__(self, real):
        self.held = real

    def __repr__(self):
        return f"There({self.held})"

    def tolist(self):
        _waits(reads, "tolist")
        return self.held.tolist()

    def data_ptr(self):
        return self.held.data_ptr()

    def new_tensor(self, data):
        return torch.tensor(data, device=self.device)

    def __getitem__(self, index):
        return super().__getitem__(_indices(index))

    def __setitem__(self, index, value):
        super().__setitem__(_indices(index), value)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class Made(TorchDispatchMode):
    """Catches what makes a tensor of none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with self:  # in inference mode operators come whole that are made of others
            parts = func.decompose(*args, **(kwargs or {}))
        return _run(func, args, kwargs or {}) if parts is NotImplemented else parts


def _run(func, args, kwargs):
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    mine, name = [one for one in tensors if isinstance(one, There)], func._schema.name.removeprefix("aten::")
    target = kwargs.get("device")
    stays = bool(mine) if target is None else torch.device(target).type == NAME
    if mine and (name in READS or name.startswith("index") and _has_mask(args[1])):
        _waits(reads, name)
    # A GPU takes numbers of the host beside its tensors. As an index it takes tensors, too, and copies them; not here.
    foreign = [one for one in tensors if not isinstance(one, There) and one.dim()]
    if name in COPIES and tensors and (bool(mine) is not stays or foreign and mine):
        _waits(copies, name)
    elif mine and foreign:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found {NAME} and cpu")
    if not mine and not stays:
        return func(*args, **kwargs)
    real_args, real_kwargs = tree_map(_on_host, (args, kwargs))
    if target is not None:
        real_kwargs["device"] = torch.device("cpu")
    if _graph is not None and stays:
        _graph.keep(func, mine)
    made = func(*real_args, **real_kwargs)
    if not stays:
        return made
    if _graph is not None:
        _graph.calls.append((func, real_args, real_kwargs, made))
    with torch.inference_mode(torch.is_inference_mode_enabled() and all(one.is_inference() for one in mine)):
        made = tree_map(lambda leaf: There(leaf) if isinstance(leaf, torch.Tensor) else leaf, made)
    return return_and_correct_aliasing(func, args, kwargs, made)


def _on_host(leaf):
    """What an argument is there; a graph keeps a number of the host as it was when it was captured."""
    if isinstance(leaf, There):
        return leaf.held
    return leaf.clone() if _graph is not None and isinstance(leaf, torch.Tensor) else leaf


def _has_mask(indices):
    """Whether an index is by truth values, which have to be counted."""
    return any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in tree_leaves(indices))


class Graph:
    """What a function does to tensors of the device: as in CUDA graphs it is not done when it is captured, but by each
    `replay`, with the memory and the numbers of the host that it had then."""

    def __init__(self, function):
        global _graph
        self.calls, self.before = [], {}
        _graph = self
        try:
            self.result = function()
        finally:
            _graph = None
            for storage, contents in self.before.values():
                storage.copy_(contents)

    def keep(self, func, tensors):
        """What the memory has that an operator is about to write to."""
        if func._schema.is_mutable:
            for storage in (tensor.held.untyped_storage() for tensor in tensors):
                if storage.data_ptr() not in self.before:
                    self.before[storage.data_ptr()] = storage, storage.clone()

    def replay(self):
        for func, args, kwargs, made in self.calls:
            again = func(*args, **kwargs)
            if all(returned.alias_info is None for returned in func._schema.returns):
                for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                    old.copy_(new)


def _waits(kind, name):
    if _graph is not None:
        raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
    kind.append(name)


_tensor = torch.tensor


def _indices(index):
    """PyTorch would make tensors of lists past all modes, too."""
    parts = index if isinstance(index, tuple) else (index,)
    made = tuple(torch.tensor(part, device=torch.device(NAME, 0)) if isinstance(part, list) else part for part in parts)
    return made if isinstance(index, tuple) else made[0]


def _tensor_of(data, *, dtype=None, device=None, **more):
    """PyTorch makes a tensor of numbers on the host and copies it, past all modes."""
    if device is None or torch.device(device).type != NAME:
        return _tensor(data, dtype=dtype, device=device, **more)
    _waits(copies, "tensor")
    return There(_tensor(data, dtype=dtype, **more))


def put(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of a module there; what was one tensor stays one."""
    module, there = copy.deepcopy(module), {}
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            for name, tensor in kept.items():
                if tensor is not None:
                    if tensor not in there:
                        moved = There(tensor.detach())
                        if kept is part._parameters:
                            moved = torch.nn.Parameter(moved, tensor.requires_grad)
                        there[tensor] = moved
                    kept[name] = there[tensor]
    return module


@contextlib.contextmanager
def device(monkeypatch) -> Iterator[torch.device]:
    """Within it tensors can be made there."""
    monkeypatch.setattr(torch, "tensor", _tensor_of)
    reads.clear()
    copies.clear()
    with Made():
        yield torch.device(NAME, 0)
