"""Our layers against Transformers' own classes: logits and hidden states, padded and not, float32 and float64."""

import copy

import pytest
import tiny
import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from spec2seq import Lookup, Seq2Seq, Spec2SeqError, UsageError
from spec2seq.models import families

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-5}


def prefixes(model, rows: int, length: int, seed: int = 3) -> torch.Tensor:
    """Random decoder inputs that start with the decoder start."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, model.config.vocab_size, (rows, length), generator=generator)
    ids[ids == model.config.pad_token_id] = 3  # Transformers counts it differently with and without a cache
    ids[:, 0] = model.config.decoder_start_token_id
    return ids


def decoded(model: Seq2Seq, sources: list[list[int]], ids: torch.Tensor, **asked):
    """One pass over all of `ids`, in a fresh cache."""
    tokens, lengths = tiny.padded(sources, model.config.pad_token_id)
    cache = model.model.new_cache(len(sources))
    model.model.admit(cache, 0, model.model.encode(tokens, lengths))
    return model.model.decode_block(cache, ids, torch.zeros_like(lengths), ids.shape[1], uniform=True, **asked)


def of_type(theirs: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    return theirs if dtype == torch.float64 else copy.deepcopy(theirs).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("seed", tiny.SEEDS[:2])
def test_logits_equal_those_of_transformers(family, seed, dtype):
    theirs = of_type(tiny.transformers_model(family, seed), dtype)
    model = Seq2Seq.from_transformers(theirs)
    sources = tiny.sources(theirs, 6, seed, longest=40)  # far enough for T5's logarithmic buckets
    ids = prefixes(theirs, 6, 40)
    expected = theirs(**tiny.encoder_inputs(theirs, sources), decoder_input_ids=ids, use_cache=False).logits
    ours = decoded(model, sources, ids).logits
    assert ours.dtype == dtype
    assert expected.std() > 0.5  # wide enough that a tolerance of 1e-4 means something
    torch.testing.assert_close(ours, expected, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("family", tiny.COUSINS)
def test_cousins_of_other_families(family):
    theirs = tiny.transformers_model(family)
    sources, ids = tiny.sources(theirs, 6), prefixes(theirs, 6, 20)
    expected = theirs(**tiny.encoder_inputs(theirs, sources), decoder_input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(decoded(tiny.seq2seq(family), sources, ids).logits, expected, atol=1e-9, rtol=0)
    written = tiny.generated(theirs, sources, 16)
    assert len({len(row) for row in written}) >= 2
    for method in (None, Lookup(4)):
        assert tiny.seq2seq(family).generate(sources, method, max_new_tokens=16).sequences == written


def test_the_encoder_equals_that_of_transformers(family):
    theirs = tiny.transformers_model(family)
    sources = tiny.sources(theirs, 5, longest=40)
    inputs = tiny.encoder_inputs(theirs, sources)
    expected = theirs.get_encoder()(**inputs).last_hidden_state
    tokens, lengths = tiny.padded(sources, theirs.config.pad_token_id)
    ours = tiny.seq2seq(family).model.encode(tokens, lengths).states
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(ours[real], expected[real], atol=1e-5, rtol=0)


def test_padding_of_sources_changes_nothing(family):
    model = tiny.seq2seq(family)
    sources = tiny.sources(model, 5)
    ids = prefixes(model, 5, 9)
    together = decoded(model, sources, ids).logits
    alone = torch.cat([decoded(model, [source], row[None]).logits for source, row in zip(sources, ids, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-9, rtol=0)


def test_hidden_states_equal_those_of_transformers(family):
    theirs = tiny.transformers_model(family)
    sources, ids = tiny.sources(theirs, 4), prefixes(theirs, 4, 7)
    expected = theirs(
        **tiny.encoder_inputs(theirs, sources), decoder_input_ids=ids, output_hidden_states=True, use_cache=False
    ).decoder_hidden_states
    ours = decoded(tiny.seq2seq(family), sources, ids, hidden_layers=(0, 1))
    assert set(ours.hidden) == {0, 1}
    for layer in (0, 1):
        torch.testing.assert_close(ours.hidden[layer], expected[layer], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.states, expected[-1], atol=1e-5, rtol=0)


def test_logits_only_where_asked(family):
    model = tiny.seq2seq(family)
    sources, ids = tiny.sources(model, 4), prefixes(model, 4, 7)
    everywhere = decoded(model, sources, ids).logits
    places = torch.tensor([[0, 6], [3, 3], [6, 1], [2, 5]])
    asked = decoded(model, sources, ids, logit_positions=places).logits
    expected = torch.stack([logits[place] for logits, place in zip(everywhere, places, strict=True)])
    torch.testing.assert_close(asked, expected, atol=1e-12, rtol=0)


def test_separate_tables_are_kept_apart():
    theirs = copy.deepcopy(tiny.transformers_model("t5-gated"))
    theirs.decoder.embed_tokens = torch.nn.Embedding.from_pretrained(theirs.shared.weight.flip(0))
    model = Seq2Seq.from_transformers(theirs)
    assert model.model.target_embedding is not model.model.source_embedding
    sources, ids = tiny.sources(theirs, 3), prefixes(theirs, 3, 5)
    expected = theirs(**tiny.encoder_inputs(theirs, sources), decoder_input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(decoded(model, sources, ids).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["fsmt", "marian"])
def test_source_and_target_may_have_vocabularies_of_their_own(family):
    config = tiny.config(family)
    if family == "fsmt":
        config.src_vocab_size, config.tie_word_embeddings = 70, False
    else:
        config.decoder_vocab_size, config.share_encoder_decoder_embeddings = 80, False
        config.tie_word_embeddings = False
    torch.manual_seed(0)
    theirs = AutoModelForSeq2SeqLM.from_config(config).double().eval()
    for parameter in theirs.parameters():
        parameter *= 8
    model = Seq2Seq.from_transformers(theirs)
    sizes = (70, 64) if family == "fsmt" else (64, 80)
    assert (model.model.source_embedding.shape[0], model.model.target_embedding.shape[0]) == sizes
    sources, ids = [[sizes[0] - 2, 9, 5, config.eos_token_id], [7, config.eos_token_id]], torch.tensor([[2, 49, 8]] * 2)
    expected = theirs(**tiny.encoder_inputs(theirs, sources), decoder_input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(decoded(model, sources, ids).logits, expected, atol=1e-9, rtol=0)
    with pytest.raises(UsageError, match=f"allowed: 0 to {sizes[0] - 1}"):
        model.generate([[sizes[0]]])
    greedy = model.generate(sources, max_new_tokens=9)
    assert model.generate(sources, Lookup(4), max_new_tokens=9).sequences == greedy.sequences


@pytest.mark.parametrize("name", ["leaky_relu", "quick_gelu", "relu2", "gelu_10", "gelu_pytorch_tanh", "silu"])
def test_any_activation(name):
    config = copy.deepcopy(tiny.transformers_model("pegasus").config)
    config.activation_function = name
    theirs = AutoModelForSeq2SeqLM.from_config(config).double().eval()
    theirs.load_state_dict(tiny.transformers_model("pegasus").state_dict())
    sources, ids = tiny.sources(theirs, 3), prefixes(theirs, 3, 5)
    expected = theirs(**tiny.encoder_inputs(theirs, sources), decoder_input_ids=ids).logits
    torch.testing.assert_close(
        decoded(Seq2Seq.from_transformers(theirs), sources, ids).logits, expected, atol=1e-9, rtol=0
    )


def test_padding_within_a_text_has_no_place():
    """M2M100's rule. Its class counts padding in an output only if it comes token by token."""
    theirs, model = tiny.transformers_model("m2m_100"), tiny.seq2seq("m2m_100")
    pad, eos = theirs.config.pad_token_id, theirs.config.eos_token_id
    source, ids = torch.tensor([[5, pad, 9, pad, 7, eos]]), [eos, 8, pad, 6, pad, pad, 4]
    state, cache = theirs.get_encoder()(source, attention_mask=torch.ones_like(source)), None
    expected = []
    for token in ids:
        step = theirs(encoder_outputs=state, decoder_input_ids=torch.tensor([[token]]), past_key_values=cache)
        cache = step.past_key_values
        expected.append(step.logits[0])
    ours = decoded(model, source.tolist(), torch.tensor([ids])).logits[0]
    torch.testing.assert_close(ours, torch.cat(expected), atol=1e-9, rtol=0)
    plain = torch.tensor([[token if token != pad else 3 for token in ids]])
    assert (decoded(model, source.tolist(), plain).logits[0, -1] - ours[-1]).abs().max() > 1e-3


def test_tied_tables_exist_once(family):
    model = tiny.seq2seq(family).model
    assert model.target_embedding is model.source_embedding
    assert (model.head.weight is model.target_embedding) == (family not in tiny.UNTIED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "gpt2"},
            "model type 'gpt2' is not supported; supported: bart, blenderbot, fsmt, m2m_100, marian",
        ),
        ({"activation_function": "swoosh"}, "activation 'swoosh' is not supported; supported: relu"),
        ({"activation_function": "prelu"}, "activation 'prelu' is not supported; supported: relu"),
    ],
)
def test_what_is_not_supported_is_refused(change, message):
    theirs = tiny.transformers_model("marian")
    config = copy.deepcopy(theirs.config)
    for name, value in change.items():
        object.__setattr__(config, name, value) if name == "model_type" else setattr(config, name, value)
    with pytest.raises(Spec2SeqError) as error:
        families.load(config, theirs.state_dict(), "here")
    assert message in str(error.value)
