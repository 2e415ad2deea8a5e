"""The verifier's own first layers as its little model."""

import copy

import pytest
import tiny
import torch

from spec2seq import BiLD, UsageError

CAP = 12


def test_the_exit_is_a_model_of_the_first_layers(family):
    """Logits of Transformers' own class with the later layers taken out."""
    theirs = copy.deepcopy(tiny.transformers_model(family))
    decoder = theirs.decoder if theirs.config.model_type == "t5" else theirs.model.decoder
    name = "block" if theirs.config.model_type == "t5" else "layers"
    setattr(decoder, name, getattr(decoder, name)[:1])
    model, (source,) = tiny.seq2seq(family), tiny.sources(theirs, 1, 3)
    little = model.early_exit(1).model
    ids = torch.tensor([[theirs.config.decoder_start_token_id, 5, 9, 7]])
    with torch.inference_mode():
        expected = theirs(torch.tensor([source]), decoder_input_ids=ids, use_cache=False).logits
        cache, none = little.new_cache(1), torch.zeros(1, dtype=torch.long)
        little.admit(cache, 0, model.model.encode(torch.tensor([source]), torch.tensor([len(source)])))
        found = little.decode_block(cache, ids, none, 4, uniform=True).logits
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    assert little.head.weight is model.model.head.weight
    assert len(model.model.decoder.layers) == 2  # the model itself is whole


def test_it_drafts_and_greedy_stays_greedy(family):
    model = tiny.seq2seq(family)
    sources = tiny.sources(model, 9, 5)
    method = BiLD(model.early_exit(1), None, 0.0, 4, verify_tail=True)
    alone, together = (model.generate(sources, method, max_new_tokens=CAP, batch_size=size) for size in (1, 4))
    assert alone.sequences == together.sequences == model.generate(sources, max_new_tokens=CAP).sequences
    assert alone.stats.drafted > 0


def test_what_cannot_be_is_refused():
    model = tiny.seq2seq("t5")
    with pytest.raises(UsageError, match="not trained for an early exit"):
        model.early_exit()
    for layers in (0, 2):
        with pytest.raises(UsageError, match=f"early_exit is {layers}; allowed: from 1 to 1"):
            model.early_exit(layers)


def test_that_of_another_model_reads_for_itself():
    model, other = tiny.seq2seq("t5"), tiny.seq2seq("t5", 1)
    sources = tiny.sources(other, 4)
    method = BiLD(model.early_exit(1), None, 0.0, 4, verify_tail=True)
    found = other.generate(sources, method, max_new_tokens=CAP)
    assert found.sequences == other.generate(sources, max_new_tokens=CAP).sequences and found.stats.drafted > 0
