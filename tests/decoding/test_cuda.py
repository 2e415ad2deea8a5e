"""The same token ids on a GPU as on a CPU, in float32."""

import copy

import pytest
import tiny
import torch

from spec2seq import Assisted, Beam, BiLD, Greedy, Lookup, Sample, Seq2Seq, SpecDec
from spec2seq.decoding import device_memory
from spec2seq.decoding.cached_blocks import CachedBlockDrafter
from spec2seq.decoding.loop import Engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
CAP = 20


def on(model: Seq2Seq, device: str) -> Seq2Seq:
    return Seq2Seq(copy.deepcopy(model.model).float().to(device), model.config, None, model.generation_config)


def methods(little: Seq2Seq) -> dict:
    drafter = little.drafter()
    return {
        "greedy": Greedy(), "assisted": Assisted(drafter, 4), "confidence": Assisted(drafter, 6, 0.3),
        "lookup": Lookup(4), "bild": BiLD(drafter, 0.3, 2.0), "beam": Beam(3),
        "sample": Sample(seed=3, drafter=drafter),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["greedy", "assisted", "confidence", "lookup", "bild", "beam", "sample"])
def test_token_ids_equal_those_of_the_cpu(family, name):
    model = tiny.seq2seq(family)
    sources, found = tiny.sources(model, 10, 50), {}
    for device in ("cpu", "cuda"):
        little = on(tiny.noisy_copy(model, 0.02), device)
        found[device] = on(model, device).generate(sources, methods(little)[name], max_new_tokens=CAP, batch_size=4)
    assert found["cuda"].sequences == found["cpu"].sequences
    if name in ("greedy", "assisted", "confidence", "lookup"):
        # In float64 too: none of these rows hangs on a rounding.
        assert found["cpu"].sequences == model.generate(sources, max_new_tokens=CAP).sequences
    if name in ("assisted", "lookup"):
        assert found["cuda"].stats.accepted == found["cpu"].stats.accepted > 0


@pytest.mark.parametrize("name", ["greedy", "specdec", "adaptive", "relaxed"])
@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("graphs", [True, False])
def test_token_ids_with_graphs_and_without(family, name, batch_size, graphs):
    model = tiny.seq2seq(family)
    block = CachedBlockDrafter(copy.deepcopy(tiny.cached_drafter(model).model).float().cuda())
    method = {"greedy": Greedy(), "specdec": SpecDec(block, 4), "adaptive": SpecDec(block),
              "relaxed": SpecDec(block, 4, beta=20, tau=6.0)}[name]  # fmt: skip
    drafter = tiny.cached_drafter(model)
    alone = {"relaxed": SpecDec(drafter, 4, beta=20, tau=6.0)}.get(name, Greedy())
    wanted = model.generate(tiny.sources(model, 12, 50), alone, max_new_tokens=CAP).sequences
    mine = on(model, "cuda")
    mine.model.graphs = graphs
    for _ in range(3):  # as it is, captured, replayed
        found = mine.generate(tiny.sources(model, 12, 50), method, max_new_tokens=CAP, batch_size=batch_size)
        assert found.sequences == wanted
    native = Engine(mine.model, method, batch_size).native
    assert (native is not None) is graphs
    if graphs:
        assert any(made is not None for made in native.graphs.made.values())


@pytest.mark.parametrize("name", ["greedy", "specdec"])
def test_token_ids_under_processors(family, name):
    """What a generation config asks for is in the graph."""
    model = tiny.seq2seq(family)
    asking = tiny.under_processors(model)
    block = CachedBlockDrafter(copy.deepcopy(tiny.cached_drafter(model).model).float().cuda())
    wanted = asking.generate(tiny.sources(model, 12, 50), max_new_tokens=CAP).sequences
    mine = on(asking, "cuda")
    mine.model.graphs = True
    method = Greedy() if name == "greedy" else SpecDec(block, 4)
    for _ in range(3):
        found = mine.generate(tiny.sources(model, 12, 50), method, max_new_tokens=CAP, batch_size=4)
        assert found.sequences == wanted
    native = mine.engine(method, 4).native
    assert any(made is not None for made in native.graphs.made.values()) and not native.graphs.failed


def test_memory_stays_within_the_limit():
    device = torch.device("cuda")
    try:
        device_memory.limit(device, 1.0)
        model = on(tiny.seq2seq("bart"), "cuda")
        model.model.graphs = True
        model.generate(tiny.sources(model, 64, 3), max_new_tokens=CAP, batch_size=64)
        assert torch.cuda.memory_reserved(device) <= 2**30
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_model_is_saved_from_the_device(tmp_path):
    model = on(tiny.seq2seq("marian"), "cuda")
    Seq2Seq(model.model, model.config, tiny.tokenizer(model), None).save_pretrained(tmp_path / "model")
    back = Seq2Seq.from_pretrained(tmp_path / "model", device="cuda")
    sources = tiny.sources(model, 3)
    assert {parameter.device.type for parameter in back.model.parameters()} == {"cuda"} and back.model.graphs
    assert not Seq2Seq.from_pretrained(tmp_path / "model", device="cuda", executor="torch").model.graphs
    assert back.generate(sources, max_new_tokens=8).sequences == model.generate(sources, max_new_tokens=8).sequences
