"""The fused loss against PyTorch's own, values and gradients, for Marian and T5."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import MarianConfig, MarianMTModel, T5Config, T5ForConditionalGeneration

from spec2seq.training.loss import narrow_residuals, sequence_loss


def _model(family: str):
    torch.manual_seed(0)
    common = dict(vocab_size=40, d_model=16, pad_token_id=39, eos_token_id=0, decoder_start_token_id=39)
    if family == "t5":
        return T5ForConditionalGeneration(
            T5Config(d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0, **common)
        )
    return MarianMTModel(
        MarianConfig(
            encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, dropout=0.0,
            encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32, init_std=0.5, **common,
        )
    )  # fmt: skip


def _batch() -> dict[str, torch.Tensor]:
    labels = torch.randint(1, 39, (3, 7))
    labels[0, 4:] = -100
    decoder = torch.where(labels == -100, 39, labels).roll(1, 1)
    decoder[:, 0] = 39
    ids = torch.randint(1, 39, (3, 6))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": decoder, "labels": labels}


@pytest.mark.parametrize("family", ["marian", "t5"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_value_and_gradients_equal_pytorchs(family: str, smoothing: float) -> None:
    model, batch = _model(family), _batch()
    model.train()
    logits = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}).logits
    labels = batch["labels"].flatten()
    expected = cross_entropy(logits.flatten(0, 1), labels, label_smoothing=smoothing, reduction="sum")
    plain = cross_entropy(logits.flatten(0, 1), labels, reduction="sum")
    expected.backward()
    wanted = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    smooth, nll, tokens = sequence_loss(model, batch, smoothing, torch.float32, chunk=4)
    smooth.backward()
    assert tokens == 18
    torch.testing.assert_close(smooth, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(nll, plain.detach(), rtol=1e-5, atol=1e-4)
    for name, weight in model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(weight.grad, wanted[name], rtol=1e-3, atol=1e-4)


def test_narrow_residuals_changes_nothing_without_autocast() -> None:
    model, batch = _model("marian").eval(), _batch()
    before = sequence_loss(model, batch, 0.1, torch.float32)[0]
    narrow_residuals(model)
    assert torch.equal(before, sequence_loss(model, batch, 0.1, torch.float32)[0])
    with torch.autocast("cpu", torch.bfloat16):
        narrow = sequence_loss(model, batch, 0.1, torch.bfloat16)[0]
    torch.testing.assert_close(narrow, before, rtol=0.02, atol=0.1)
