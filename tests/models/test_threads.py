"""While the compiled executor works PyTorch's operators use one thread, and afterwards as many as before."""

import threading

import pytest
import tiny
import torch
from models.native_models import METHODS, block_drafter, little_model, needs_compiler, seq2seq

from spec2seq import Beam, Greedy, Sample, SpecDec
from spec2seq.decoding import native_loop
from spec2seq.models import native, threads

needs_openmp = pytest.mark.skipif(threads._openmp() is None, reason="PyTorch's OpenMP here is not GNU's")


@pytest.fixture(autouse=True)
def three():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@needs_openmp
def test_one_thread_inside_and_as_many_as_before_outside():
    for _ in range(2):
        with threads.ours():
            assert (torch.get_num_threads(), threads.count()) == (1, 3)
            with threads.ours():  # an engine that measures, within one that decodes
                assert (torch.get_num_threads(), threads.count()) == (1, 3)
            assert (torch.get_num_threads(), threads.count()) == (1, 3)
        assert (torch.get_num_threads(), threads.count()) == (3, 3)
    with threads.ours(False):
        assert torch.get_num_threads() == 3
    with pytest.raises(KeyboardInterrupt), threads.ours():
        raise KeyboardInterrupt
    assert (torch.get_num_threads(), threads.count()) == (3, 3)


@needs_openmp
def test_other_threads_keep_theirs():
    found = []
    with threads.ours():
        for _ in range(2):
            other = threading.Thread(target=lambda: found.append((torch.get_num_threads(), threads.count())))
            other.start()
            other.join()
    assert found == [(3, 3)] * 2


def test_without_gnus_nothing_changes(monkeypatch):
    monkeypatch.setattr(threads, "_openmp", lambda: None)
    with threads.ours():
        assert (torch.get_num_threads(), threads.count()) == (3, 3)


@needs_openmp
@needs_compiler
@pytest.mark.parametrize("kind", [*METHODS, "beam", "sample"])
def test_who_does_what_takes_long(kind, monkeypatch):
    """With the executor's methods alone, which still gets all threads; what is drawn is PyTorch's."""
    model, used = seq2seq("marian", "float32"), set()

    class Library:
        def __getattr__(self, name):
            def run(*arguments):
                used.add((torch.get_num_threads(), arguments[-1]))
                return getattr(real, name)(*arguments)

            return run

    real, library = native.c.find()[0], Library()
    monkeypatch.setattr(native.c, "find", lambda: (library, ""))
    block, little = block_drafter("marian", "float32"), little_model("marian", "float32")
    method = {"beam": Beam(3), "sample": Sample(seed=1)}.get(kind) or METHODS[kind](block, little)
    model.generate(tiny.sources(tiny.transformers_model("marian"), 5), method, max_new_tokens=9, batch_size=2)
    assert used == {(3 if kind == "sample" else 1, 3)}
    assert torch.get_num_threads() == 3


@needs_compiler
def test_a_drafter_in_pytorch_keeps_its_threads():
    model = seq2seq("marian", "float32")
    paper = tiny.paper_drafter(tiny.seq2seq("marian"))
    assert model.engine(Greedy()).compiled
    engine = model.engine(SpecDec(paper, 3))
    assert isinstance(engine.native, native_loop.NativeLoop) and not engine.compiled
