"""Training of a model whose first decoder layers write by themselves, too."""

import copy

import pytest
import tiny
import torch

from spec2seq import Seq2Seq
from spec2seq.errors import UsageError
from spec2seq.training.loss import sequence_loss
from spec2seq.training.recipe import parse_recipe
from spec2seq.training.run import train


@pytest.mark.parametrize("family", ["marian", "t5"])
def test_the_loss_is_the_mean_of_both_exits(family):
    """That of a model of all layers and of one of the first alone; the plain one is of all layers."""
    whole = copy.deepcopy(tiny.transformers_model(family)).float().requires_grad_(True)
    first = copy.deepcopy(whole)
    decoder = first.decoder if hasattr(first, "decoder") else first.model.decoder
    name = "block" if hasattr(first, "decoder") else "layers"
    setattr(decoder, name, getattr(decoder, name)[:1])
    batch = {
        "input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]]), "attention_mask": torch.ones(2, 3, dtype=torch.long),
        "decoder_input_ids": torch.tensor([[0, 5, 6], [0, 9, 8]]), "labels": torch.tensor([[5, 6, 1], [9, 8, -100]]),
    }  # fmt: skip
    (deep, plain, count), (shallow, _, _) = (sequence_loss(m, batch, 0.1, torch.float32) for m in (whole, first))
    whole.config.early_exit = 1
    both, plain_of_both, count_of_both = sequence_loss(whole, batch, 0.1, torch.float32)
    torch.testing.assert_close(both, (deep + shallow) / 2)
    torch.testing.assert_close(plain_of_both, plain)
    assert count == count_of_both == 5
    both.backward()
    assert whole.lm_head.weight.grad.abs().sum() > 0


def test_a_recipe_trains_it_and_the_folder_drafts(values, data, tmp_path):
    values["model"]["early_exit"] = 1
    values["training"]["max_steps"] = 3
    del values["data"]["test"]
    folder = train(parse_recipe(values), tmp_path / "run", data).folder
    model = Seq2Seq.from_pretrained(folder)
    assert len(model.early_exit().model.decoder.layers) == 1
    values["model"]["early_exit"] = 2
    with pytest.raises(UsageError, match="early_exit is 2; allowed: from 1 to 1"):
        parse_recipe(values)
