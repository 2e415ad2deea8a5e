"""Losses and their gradients on a made-up device (`elsewhere`), where nothing of the host may be mixed in."""

import functools
from pathlib import Path

import elsewhere
import pytest
import test_drafting
import test_glancing
import test_loss
import tiny
import torch

from spec2seq import CachedBlockDrafter, Seq2Seq
from spec2seq.training.data import Pair
from spec2seq.training.draft_scores import score_drafter
from spec2seq.training.drafting import block_guesses
from spec2seq.training.inputs import inputs_of
from spec2seq.training.loss import sequence_loss


def gradients(module, found):
    """The loss, and what its gradients are on the host."""
    smooth, _, count = found
    smooth.backward()
    grads = {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}
    assert {grad.device for grad in grads.values()} == {smooth.device}
    return float(smooth.detach()), count, {name: grad.cpu() for name, grad in grads.items()}


def same(here, there):
    assert here[:2] == pytest.approx(there[:2])
    torch.testing.assert_close(here[2], there[2])


def moved(batch, device):
    return {name: tensor.to(device) for name, tensor in batch.items()}


@pytest.mark.parametrize("family", ["marian", "t5-gated"])
def test_the_loss_of_a_block_drafter(family, monkeypatch):
    model = tiny.seq2seq(family)
    drafter = test_drafting.trainable(model)
    batch = test_drafting.batch_of(model, tiny.sources(model, 3, 5), test_drafting.OUTPUTS)
    other = elsewhere.put(drafter)
    here = gradients(drafter, test_drafting.loss_of(model, drafter, batch))
    with elsewhere.device(monkeypatch) as device:
        verifier = Seq2Seq(elsewhere.put(model.model), model.config, None, None)
        loss = test_drafting.loss_of(verifier, other, moved(batch, device))
        assert loss[0].device == device
        there = gradients(other, loss)
    same(here, there)


def test_the_loss_of_glancing(monkeypatch):
    drafter, batch = test_glancing.drafter(dropout=0.0).double(), test_glancing.batch(test_glancing.pairs(5))
    other, loss = elsewhere.put(drafter), test_glancing.loss()
    here = gradients(drafter, loss(drafter, batch, 0.1, torch.float64))
    with elsewhere.device(monkeypatch) as device:
        there = gradients(other, loss(other, moved(batch, device), 0.1, torch.float64))
    same(here, there)


@pytest.mark.parametrize("family", ["marian", "t5"])
def test_the_loss_of_a_verifier(family, monkeypatch):
    model, batch = test_loss._model(family).double(), test_loss._batch()
    other = elsewhere.put(model)
    here = gradients(model, sequence_loss(model, batch, 0.1, torch.float64))
    with elsewhere.device(monkeypatch) as device:
        there = gradients(other, sequence_loss(other, moved(batch, device), 0.1, torch.float64))
    same(here, there)


def test_a_drafter_is_scored(monkeypatch):
    model = tiny.seq2seq("marian")
    words = tiny.tokenizer(model)
    model = Seq2Seq(model.model, model.config, words, model.generation_config)
    pairs = [Pair(f"w{one} w5 w9", "", tokens=tokens) for one, tokens in enumerate(test_drafting.OUTPUTS, 6)]

    def scored(verifier, drafter):
        guess = functools.partial(block_guesses, drafter, verifier.model)
        return score_drafter(inputs_of(verifier, Path()), CachedBlockDrafter(drafter), guess, pairs, 2, 9)

    drafter = tiny.cached_drafter(model).model
    here, other = scored(model, drafter), elsewhere.put(drafter)
    with elsewhere.device(monkeypatch):
        there = scored(Seq2Seq(elsewhere.put(model.model), model.config, words, model.generation_config), other)
    assert there.tokens_per_verifier_call == here.tokens_per_verifier_call and there.accuracy == here.accuracy
    assert there.nll == pytest.approx(here.nll)
