"""First weights."""

from types import SimpleNamespace

import pytest
import torch

from spec2seq.training.recipe import ModelShape
from spec2seq.training.shapes import new_model


class Tokenizer(SimpleNamespace):
    """What `new_model` reads of one."""

    pad_token_id, eos_token_id = 0, 1

    def __len__(self) -> int:
        return 400


@pytest.mark.parametrize(("width", "heads"), [(128, 4), (128, 2), (256, 4), (256, 8)])
def test_a_new_t5_copies(width, heads):
    """Before any training, from the second token on; the first has nothing before it by which it is found."""
    torch.manual_seed(0)
    model = new_model(ModelShape("t5", width, 3, 3, heads, 2 * width, "relu"), Tokenizer()).eval()
    source = torch.randint(2, 400, (16, 30))
    written = torch.cat([torch.zeros(16, 1, dtype=torch.long), source[:, :-1]], 1)
    with torch.no_grad():
        logits = model(input_ids=source, decoder_input_ids=written).logits[:, 1:]
    assert (logits.argmax(-1) == source[:, 1:]).float().mean() > 0.9


def test_a_t5_too_narrow_to_copy_is_made_all_the_same():
    model = new_model(ModelShape("t5", 8, 1, 1, 4, 32, "relu"), Tokenizer())
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_its_heads_look_at_neighbours():
    model = new_model(ModelShape("t5", 32, 1, 1, 4, 32, "relu"), Tokenizer())
    biases = [stack.block[0].layer[0].SelfAttention.relative_attention_bias for stack in (model.encoder, model.decoder)]
    assert biases[0].weight.nonzero().tolist() == [[1, 0], [2, 1], [3, 2], [17, 3]]  # 1 to 3 back, 1 ahead
    assert biases[1].weight.nonzero().tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]  # itself, 1 to 3 back
