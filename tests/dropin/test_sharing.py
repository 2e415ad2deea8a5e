"""No second copy of the weights, and the module goes on as before: values, gradients, saving."""

import copy
import gc

import foreign
import pytest
import tiny
import torch
import transformers
from dropin.modules import CAP, fresh, inputs

import spec2seq
from spec2seq import Spec2SeqError
from spec2seq.dropin.generate import share
from spec2seq.models.sharing import Shared

SETTINGS = dict(num_beams=1, do_sample=False, max_new_tokens=CAP)


def live_bytes() -> int:
    """Of every storage that a tensor in this process holds on to."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def weight_bytes(module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def storages(model) -> dict[int, int]:
    """The storages of a model's weights, and their bytes."""
    found = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def test_the_drop_in_adds_less_than_5_percent_of_the_weights(family):
    module = fresh(family)
    model = share(module)
    theirs = storages(module)
    added = sum(size for place, size in storages(model.model).items() if place not in theirs)
    assert added < 0.05 * weight_bytes(module)
    assert weight_bytes(model.model) > 0.9 * weight_bytes(module)  # all of them are there
    for parameter in model.model.parameters():  # not only in the same storages, but where the module has them
        first, last = parameter.data_ptr(), parameter.data_ptr() + parameter.nbytes
        held = [t.data_ptr() for t in (*module.parameters(), *module.buffers())]
        assert any(first <= place < last for place in held)


@pytest.mark.parametrize("family", ["bart", "m2m_100", "t5-gated"])
def test_of_all_that_is_alive_nothing_else_is_more(family):
    """Whatever holds on to it: neither the module's old tensors stay, nor anything of a generation."""
    module = fresh(family)
    before = live_bytes()
    module.generate(**inputs(module), **SETTINGS, custom_generate=spec2seq.custom_generate())
    assert live_bytes() - before < 0.05 * weight_bytes(module)


def test_a_copy_would_be_noticed():
    """The measure sees what the drop-in does without."""
    module = fresh("bart")
    before = live_bytes()
    model = spec2seq.Seq2Seq.from_transformers(module)
    assert live_bytes() - before > 0.9 * weight_bytes(module)
    assert storages(model.model) != storages(module)


def test_the_module_stays_what_it_was(family, tmp_path):
    module, untouched = fresh(family), tiny.transformers_model(family)
    parameters = list(module.parameters())
    share(module)
    assert all(one is other for one, other in zip(parameters, module.parameters(), strict=True))
    ours, theirs = module.state_dict(), untouched.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    batch = inputs(module)
    assert torch.equal(module.generate(**batch, **SETTINGS), untouched.generate(**batch, **SETTINGS))
    module.save_pretrained(tmp_path / "saved")
    loaded = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved", dtype=torch.float64)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in theirs.items())


def test_training_goes_on_and_is_seen(family):
    module = fresh(family)
    batch, model = inputs(module), share(module)
    first = spec2seq.generate(module, **batch, **SETTINGS)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    labels = batch["input_ids"].flip(1)
    for _ in range(3):
        optimizer.zero_grad()
        module(**batch, labels=labels).loss.backward()
        optimizer.step()
    assert share(module) is model  # still its weights, where they were
    second = spec2seq.generate(module, **batch, **SETTINGS)
    assert torch.equal(second, module.generate(**batch, **SETTINGS)) and not torch.equal(first, second)


@pytest.mark.parametrize("move", [
    lambda module: module.float(),
    lambda module: module.load_state_dict(
        {name: tensor * 1.5 for name, tensor in module.state_dict().items()}, assign=True
    ),
], ids=["another dtype", "other tensors"])  # fmt: skip
def test_weights_that_move_are_found_again(move):
    module = fresh("bart")
    batch, model = inputs(module), share(module)
    move(module)
    assert share(module) is not model
    assert torch.equal(spec2seq.generate(module, **batch, **SETTINGS), module.generate(**batch, **SETTINGS))


def test_a_bias_that_comes_later_is_seen():
    module = fresh("bart")
    module.final_logits_bias.zero_()
    model = share(module)
    assert model.model.head.bias is None and share(module) is model
    module.final_logits_bias[0, 7] = 5.0
    found = spec2seq.generate(module, **inputs(module), **SETTINGS)
    assert torch.equal(found, module.generate(**inputs(module), **SETTINGS)) and 7 in found


def test_it_is_the_same_model_to_a_drafter(family):
    """A block drafter knows its verifier by the fingerprint."""
    module = fresh(family)
    assert share(module).fingerprint() == tiny.seq2seq(family).fingerprint()


def test_a_second_time_nothing_is_moved():
    module = fresh("bart")
    model = share(module)
    places = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    again = Shared(module).model
    assert places == {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    assert storages(again) == storages(model.model)


def test_a_generation_config_that_comes_later_is_seen():
    for module in (fresh("marian"), foreign.bare("led")):
        model = share(module)
        module.generation_config = copy.deepcopy(module.generation_config)
        assert share(module) is model and model.generation_config is module.generation_config


def test_a_copied_module_has_weights_of_its_own():
    module = fresh("t5-gated")
    share(module)
    other = copy.deepcopy(module)
    assert not set(storages(share(other).model)) & set(storages(module))


def test_nothing_is_kept_of_a_module_that_is_gone():
    before = live_bytes()
    module = fresh("bart")
    spec2seq.generate(module, **inputs(module), **SETTINGS)
    del module
    assert live_bytes() == before


def test_the_native_executor_packs_a_copy_and_sees_changes():
    module = fresh("bart").float()
    batch = inputs(module)
    expected = module.generate(**batch, **SETTINGS)
    model = share(module, "native")
    assert model.model.native is not None and share(module).model.native is None
    assert torch.equal(spec2seq.generate(module, **batch, **SETTINGS, executor="native"), expected)
    with torch.no_grad():
        module.model.shared.weight *= -1.3
    changed = module.generate(**batch, **SETTINGS)
    assert torch.equal(spec2seq.generate(module, **batch, **SETTINGS, executor="native"), changed)
    assert share(module, "native") is not model and not torch.equal(changed, expected)


def test_weights_that_cannot_be_shared_are_named():
    module = fresh("bart")
    module.model.encoder.layers[1].fc1.bfloat16()
    with pytest.raises(Spec2SeqError, match="model.encoder.layers.1.fc1.weight torch.bfloat16 on cpu; allowed: one"):
        share(module)
    with torch.device("meta"):
        empty = transformers.AutoModelForSeq2SeqLM.from_config(tiny.config("bart"))
    with pytest.raises(Spec2SeqError, match="BartForConditionalGeneration: its weights are on the device meta"):
        share(empty)
    module = fresh("t5").half()
    with pytest.raises(Spec2SeqError, match="this family overflows in float16; use bfloat16 or float32"):
        share(module)
    module = fresh("bart")
    layer = module.model.decoder.layers[0]
    layer.fc1 = torch.nn.Sequential(layer.fc1)
    with pytest.raises(Spec2SeqError, match="no tensor model.decoder.layers.0.fc1.weight; allowed: a model without"):
        share(module)
