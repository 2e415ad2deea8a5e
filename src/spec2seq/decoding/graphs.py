"""CUDA graphs of functions over fixed tensors, and the one read of what such a function returns."""

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor


class Graphs:
    """Runs functions over fixed tensors. On a GPU a function is captured when it comes for the second time, and
    replayed from then on; the first time it runs as it is, which does the work and warms up. Elsewhere it always does,
    and so does one whose capture failed, with a warning.

    A function's key must name all that is fixed in it. All graphs share one memory pool, so that only one may run at a
    time, and what one returned lasts until the next runs.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.made: dict[Hashable, Any] = {}  # None: met once
        self.failed: set[Hashable] = set()
        self.captures = device.type == "cuda"
        self.pool: Any = None
        self.settled = True
        if self.captures:
            # Of another pool than the reader's: libraries have a workspace for each stream, and both run at once.
            self.stream = torch.cuda.Stream(device, priority=-1)

    def run(self, key: Hashable, function: Callable[[], Tensor]) -> Tensor:
        """What the function returns. With the key None it is never captured. `settled` says afterwards whether it will
        take as long the next time."""
        captured = self.captures and key is not None and key not in self.failed
        self.settled = not captured or self.made.get(key) is not None
        if not captured:
            return function()
        if key not in self.made:
            self.made[key] = None
            return self._aside(function)
        if self.made[key] is None:
            try:
                self.made[key] = self._capture(function)
            except RuntimeError as error:  # nothing of it has run
                self.failed.add(key)
                self.pool = None  # it may be gone with the graph
                reason = str(error).partition("\n")[0]
                warnings.warn(f"no CUDA graph of {key}, which is slower without: {reason}", stacklevel=2)
                return function()
        replay, result = self.made[key]
        replay()
        return result

    def forget(self) -> None:
        """Drop all graphs: a tensor that they read or write has moved."""
        self.made.clear()
        self.pool = None  # one whose graphs are gone cannot be used again

    def _aside(self, function: Callable[[], Tensor]) -> Tensor:
        """On the stream of the captures, where libraries then have what they set up on first use."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = function()
        current.wait_stream(self.stream)
        result.record_stream(current)
        return result

    def _capture(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        captured = torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local")
        with torch.cuda.stream(self.stream), captured:  # a capture that fails does not go back to the stream before
            result = function()
        return graph.replay, result


def read(tensor: Tensor, meanwhile: Callable[[], None]) -> list[list[int]]:
    """The numbers of a tensor `[rows, columns]`, copied without waiting; `meanwhile` runs while the device works."""
    if tensor.device.type != "cuda":
        meanwhile()
        return tensor.tolist()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(tensor.device))
    meanwhile()
    done.synchronize()
    return host.tolist()
