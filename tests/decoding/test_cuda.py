"""The same token ids on a GPU as on a CPU, in float32."""

import copy

import pytest
import tiny
import torch

from spec2seq import Assisted, Beam, BiLD, Greedy, Lookup, Sample, Seq2Seq

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


def test_a_model_is_saved_from_the_device(tmp_path):
    model = on(tiny.seq2seq("marian"), "cuda")
    Seq2Seq(model.model, model.config, tiny.tokenizer(model), None).save_pretrained(tmp_path / "model")
    back = Seq2Seq.from_pretrained(tmp_path / "model", device="cuda")
    sources = tiny.sources(model, 3)
    assert {parameter.device.type for parameter in back.model.parameters()} == {"cuda"}
    assert back.generate(sources, max_new_tokens=8).sequences == model.generate(sources, max_new_tokens=8).sequences
