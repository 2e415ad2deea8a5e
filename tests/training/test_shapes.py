"""First weights."""

from types import SimpleNamespace

import torch

from spec2seq.training.recipe import ModelShape
from spec2seq.training.shapes import new_model


class Tokenizer(SimpleNamespace):
    """What `new_model` reads of one."""

    pad_token_id, eos_token_id = 0, 1

    def __len__(self) -> int:
        return 400


def test_a_new_t5_finds_its_source():
    """Before any training the token that follows in the source is among the likeliest; chance puts it in the middle."""
    torch.manual_seed(0)
    model = new_model(ModelShape("t5", 128, 3, 3, 4, 256, "relu"), Tokenizer()).eval()
    source = torch.randint(2, 400, (16, 20))
    written = torch.cat([torch.zeros(16, 1, dtype=torch.long), source[:, :-1]], 1)
    with torch.no_grad():
        logits = model(input_ids=source, decoder_input_ids=written).logits[:, 1:]
    wanted = logits.gather(2, source[:, 1:, None])
    assert (logits > wanted).sum(-1).float().median() < 400 / 5


def test_its_heads_look_at_neighbours():
    model = new_model(ModelShape("t5", 32, 1, 1, 4, 32, "relu"), Tokenizer())
    biases = [stack.block[0].layer[0].SelfAttention.relative_attention_bias for stack in (model.encoder, model.decoder)]
    assert biases[0].weight.nonzero().tolist() == [[1, 0], [2, 2], [17, 1], [18, 3]]  # 1 and 2 back, 1 and 2 ahead
    assert biases[1].weight.nonzero().tolist() == [[0, 3], [1, 0], [2, 1], [3, 2]]  # itself, 1 to 3 back
