"""Whose threads have the cores: PyTorch's wait busily for their next operator, for milliseconds, and the compiled
executor's then wait for a core."""

import contextlib
import ctypes
import functools
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

_own = threading.local()


def count() -> int:
    """How many threads the executor may use: `torch.set_num_threads`, whatever `ours` says."""
    return getattr(_own, "count", None) or torch.get_num_threads()


@contextlib.contextmanager
def ours(wanted: bool = True) -> Iterator[None]:
    """In it PyTorch's operators, where they are called from this thread, use no other ones. Where PyTorch's OpenMP is
    not GNU's it changes nothing."""
    library = _openmp() if wanted and count() > 1 and not hasattr(_own, "count") else None
    if library is None:
        yield
        return
    _own.count = torch.get_num_threads()
    # Not torch.set_num_threads: threads that begin meanwhile would keep that number.
    library.omp_set_num_threads(1)
    try:
        yield
    finally:
        library.omp_set_num_threads(_own.count)
        del _own.count


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP that PyTorch has loaded."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    if len(found) != 1:
        return None
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(str(found[0]))
        library.omp_set_num_threads.argtypes, library.omp_set_num_threads.restype = (ctypes.c_int,), None
        return library
    return None
