"""`model.generate(custom_generate=…)`: the tensors of Transformers' own `generate`, or a refusal by name."""

import inspect

import foreign
import pytest
import tiny
import torch
import transformers
from dropin.modules import CAP, ends, fresh, inputs, noisy
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.utils import GenerateBeamEncoderDecoderOutput, GenerateEncoderDecoderOutput

import spec2seq
import spec2seq.dropin.generate
from spec2seq import Assisted, Beam, Lookup, Sample, Sampling, Seq2Seq, Spec2SeqError, SpecDec, UsageError
from spec2seq.models.encoder_decoder import EncoderDecoder

GREEDY = dict(num_beams=1, do_sample=False, max_new_tokens=CAP)
BEAMS = dict(num_beams=4, do_sample=False, max_new_tokens=CAP, length_penalty=0.6, num_return_sequences=3)


def test_greedy_is_transformers(family):
    module = tiny.transformers_model(family)
    batch = inputs(module)
    expected = module.generate(**batch, **GREEDY)
    assert len(ends(expected, module.config.pad_token_id, module.config.eos_token_id)) > 1
    assert torch.equal(module.generate(**batch, **GREEDY, custom_generate=spec2seq.custom_generate()), expected)
    assert torch.equal(spec2seq.generate(module, **batch, **GREEDY), expected)
    alone = {name: tensor[:1] for name, tensor in batch.items()}
    assert torch.equal(spec2seq.generate(module, **alone, **GREEDY), module.generate(**alone, **GREEDY))


@pytest.mark.parametrize(("family", "early_stopping"), [
    *((family, False) for family in tiny.FAMILIES), ("bart", True), ("t5", "never"),
])  # fmt: skip
def test_beams_are_transformers(family, early_stopping):
    module = tiny.transformers_model(family)
    batch, settings = inputs(module), BEAMS | {"early_stopping": early_stopping}
    expected = module.generate(**batch, **settings, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(spec2seq.generate(module, **batch, **settings), expected.sequences)
    found = spec2seq.generate(module, **batch, **settings, return_dict_in_generate=True, output_scores=True)
    assert isinstance(found, GenerateBeamEncoderDecoderOutput)
    assert torch.equal(found.sequences, expected.sequences) and found.sequences.shape[0] == 12
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, atol=1e-4, rtol=0)


def test_assisted_is_greedy_at_batch_4(family):
    """Transformers refuses an assistant for more than one row."""
    module = tiny.transformers_model(family)
    assistant, batch = noisy(module), inputs(module)
    expected = module.generate(**batch, **GREEDY)
    if family == "marian":
        with pytest.raises(ValueError, match="batch_size"):
            module.generate(**batch, **GREEDY, assistant_model=assistant)
    custom = spec2seq.custom_generate(assistant_model=assistant)
    assert torch.equal(module.generate(**batch, **GREEDY, custom_generate=custom), expected)
    assert custom.stats.drafted > 0 and custom.stats.accepted > 0 and custom.stats.rows == 4
    # The assistant in Transformers' own place, and through `generate`; a new one, as the first may have learned not to.
    custom = spec2seq.custom_generate()
    found = module.generate(**batch, **GREEDY, assistant_model=noisy(module), custom_generate=custom)
    assert torch.equal(found, expected) and custom.stats.drafted > 0
    assert torch.equal(spec2seq.generate(module, **batch, **GREEDY, assistant_model=assistant), expected)


@pytest.mark.parametrize("method", ["lookup", "block", "beam"])
def test_a_method_of_ones_own(method):
    module, model = tiny.transformers_model("bart"), tiny.seq2seq("bart")
    made = {"lookup": Lookup(3), "block": SpecDec(tiny.cached_drafter(model)), "beam": Beam(4, 0.6)}[method]
    settings = BEAMS | {"num_return_sequences": 1, "early_stopping": False} if method == "beam" else GREEDY
    batch = inputs(module)
    custom = spec2seq.custom_generate(made)
    expected = module.generate(**batch, **settings)
    assert torch.equal(module.generate(**batch, max_new_tokens=CAP, custom_generate=custom), expected)
    assert custom.stats.drafted > 0 or method == "beam"


def test_what_a_method_learned_stays():
    """The encoder's states come from Transformers, in a copy of the model; the draft lengths are those of the model."""
    module = tiny.transformers_model("bart")
    custom = spec2seq.custom_generate(assistant_model=noisy(module))
    for _ in range(2):
        module.generate(**inputs(module), **GREEDY, custom_generate=custom)
    method = spec2seq.dropin.generate.assisted(custom.assistant_model)
    assert len({id(known) for known in method._choosers.values()}) == 1


@pytest.mark.parametrize("settings", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_sources_are_encoded_once(settings, monkeypatch):
    """Transformers has done it before it calls us; a drafter of another model reads them for itself."""
    module = tiny.transformers_model("bart")
    batch, encode = inputs(module), EncoderDecoder.encode
    expected, runs = module.generate(**batch, **settings), []
    monkeypatch.setattr(EncoderDecoder, "encode", lambda *given: runs.append(given) or encode(*given))
    assert torch.equal(spec2seq.generate(module, **batch, **settings), expected) and not runs
    if settings is GREEDY:
        found = spec2seq.generate(module, **batch, **settings, assistant_model=noisy(module))
        assert torch.equal(found, expected) and len(runs) == 1


@pytest.mark.parametrize("settings", [
    dict(min_length=6), dict(min_new_tokens=5), dict(no_repeat_ngram_size=2), dict(repetition_penalty=1.7),
    dict(forced_bos_token_id=7), dict(forced_eos_token_id=2), dict(suppress_tokens=[9, 11, 30]),
    dict(bad_words_ids=[[5], [6, 7]]), dict(max_length=9, max_new_tokens=None), dict(prompt_lookup_num_tokens=3),
    dict(decoder_start_token_id=5),
], ids=lambda settings: next(iter(settings)))  # fmt: skip
def test_settings_of_a_call(settings):
    module = tiny.transformers_model("mbart")
    batch = inputs(module)
    batch = batch if "prompt_lookup_num_tokens" not in settings else {name: row[:1] for name, row in batch.items()}
    expected = module.generate(**batch, **(GREEDY | settings))
    assert torch.equal(spec2seq.generate(module, **batch, **(GREEDY | settings)), expected)
    if "prompt_lookup_num_tokens" not in settings:
        beams = GREEDY | {"num_beams": 3} | settings
        assert torch.equal(spec2seq.generate(module, **batch, **beams), module.generate(**batch, **beams))


def test_a_generation_config_and_the_modules_own():
    module = fresh("marian")
    batch = inputs(module)
    config = transformers.GenerationConfig(num_beams=3, max_new_tokens=7, length_penalty=2.0)
    expected = module.generate(**batch, generation_config=config)
    assert torch.equal(spec2seq.generate(module, **batch, generation_config=config), expected)
    module.generation_config.update(num_beams=2, max_new_tokens=5)
    assert torch.equal(spec2seq.generate(module, **batch), module.generate(**batch))
    # A method that is given counts more than the module's own config, and less than nothing of the call.
    greedy = module.generate(**batch, num_beams=1)
    assert torch.equal(spec2seq.generate(module, **batch, method=Lookup(2)), greedy)
    with pytest.raises(UsageError, match="num_beams is 4, but the method given is Speculative"):
        spec2seq.generate(module, **batch, method=Lookup(2), num_beams=4)
    with pytest.raises(UsageError, match="do_sample is True, but the method given is"):
        spec2seq.generate(module, **batch, method=Lookup(2), do_sample=True)


def test_without_a_length_there_are_20_tokens():
    module = tiny.transformers_model("marian")
    batch = inputs(module)
    expected = module.generate(**batch, num_beams=1)
    assert expected.shape[1] == 21
    assert torch.equal(spec2seq.generate(module, **batch, num_beams=1), expected)


def test_sources_with_a_mask_of_floats_without_one_and_by_position():
    module = tiny.transformers_model("t5")
    batch = inputs(module)
    expected = module.generate(**batch, **GREEDY)
    batch["attention_mask"] = batch["attention_mask"].float()
    assert torch.equal(spec2seq.generate(module, **batch, **GREEDY), expected)
    ids = batch["input_ids"]
    expected = module.generate(ids, **GREEDY)
    assert torch.equal(spec2seq.generate(module, ids, **GREEDY), expected)
    assert torch.equal(module.generate(ids, **GREEDY, custom_generate=spec2seq.custom_generate()), expected)


def test_sampling_draws_as_the_engine_does():
    """Not Transformers' draws, but repeated by torch.manual_seed, several for a source, and the same distribution."""
    module = tiny.transformers_model("bart")
    batch, settings = inputs(module), dict(do_sample=True, num_beams=1, max_new_tokens=CAP)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(spec2seq.generate(module, **batch, **settings, num_return_sequences=3))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert draws[0].shape[0] == 12 and len({tuple(row) for row in draws[0].tolist()}) > 6
    # Of one likeliest token nothing is left to chance: `top_k` arrives.
    greedy = module.generate(**batch, **GREEDY)
    assert torch.equal(spec2seq.generate(module, **batch, **settings, top_k=1), greedy)
    drafted = dict(assistant_model=noisy(module), top_k=1)
    assert torch.equal(spec2seq.generate(module, **batch, **settings, **drafted), greedy)
    assert torch.equal(spec2seq.generate(module, **batch, max_new_tokens=CAP, method=Sample(top_k=1)), greedy)


def test_beam_sampling():
    module = tiny.transformers_model("bart")
    batch = inputs(module)
    settings = BEAMS | dict(do_sample=True, return_dict_in_generate=True, output_scores=True)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(spec2seq.generate(module, **batch, **settings))
    assert draws[0].sequences.shape[0] == 12
    assert torch.equal(draws[0].sequences, draws[1].sequences)
    assert torch.equal(draws[0].sequences_scores, draws[1].sequences_scores)
    assert not torch.equal(draws[0].sequences, draws[2].sequences)
    with pytest.raises(UsageError, match="do_sample is True, but the method given is Beam"):
        spec2seq.generate(module, **batch, method=Beam(4), do_sample=True)
    drawn = spec2seq.generate(module, **batch, method=Beam(4, sampling=Sampling()), do_sample=True, max_new_tokens=CAP)
    assert drawn.shape[0] == 4


def test_as_a_dictionary():
    module = tiny.transformers_model("t5")
    found = spec2seq.generate(module, **inputs(module), **GREEDY, return_dict_in_generate=True)
    assert isinstance(found, GenerateEncoderDecoderOutput) and [*found] == ["sequences"]
    assert torch.equal(found.sequences, module.generate(**inputs(module), **GREEDY))


@pytest.mark.parametrize("settings", [GREEDY, BEAMS, GREEDY | {"min_length": 9, "repetition_penalty": 1.4}])
@pytest.mark.parametrize("family", ["marian", "bart", "t5", "m2m_100"])
def test_outputs_that_begin_with_tokens(family, settings):
    """Of one length; and of several, padded on the left, each as it is alone."""
    module = tiny.transformers_model(family)
    start, batch = module.config.decoder_start_token_id, inputs(module)
    told = torch.tensor([[start, 7, 12, 9], [start, 5, 5, 11], [start, 7, 7, 7], [start, 4, 20, 8]])
    expected = module.generate(**batch, **settings, decoder_input_ids=told)
    found = spec2seq.generate(module, **batch, **settings, decoder_input_ids=told)
    assert torch.equal(found, expected) and found.shape[1] > 6
    method = Lookup(3) if settings is GREEDY else None
    if method is not None:  # a row that begins otherwise than the others
        method = Assisted(tiny.noisy_copy(Seq2Seq.from_transformers(module), 0.02).drafter(), 3)
    told[1, :2], told[2, :3], pad = torch.tensor([0, start]), torch.tensor([0, 0, start]), [0, 1, 2, 0]
    mask = torch.tensor([[0] * count + [1] * (4 - count) for count in pad])
    found = spec2seq.generate(module, **batch, **settings, decoder_input_ids=told, decoder_attention_mask=mask,
                              method=method)  # fmt: skip
    beams = len(found) // 4
    for row, count in enumerate(pad):
        alone = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        wanted = module.generate(**alone, **settings, decoder_input_ids=told[row : row + 1, count:])
        for mine, theirs in zip(found[row * beams : (row + 1) * beams], wanted, strict=True):
            theirs = theirs[: len(mine) - count]  # of what comes behind only the padding
            assert mine[:count].tolist() == [0] * count
            assert mine[count : count + len(theirs)].tolist() == theirs.tolist()
            assert set(mine[count + len(theirs) :].tolist()) <= {module.config.pad_token_id}


@pytest.mark.parametrize(("family", "drafted"), [*((family, False) for family in tiny.FAMILIES), ("bart", True)])
def test_scores_and_logits_of_every_token(family, drafted):
    """Up to the end of a row; what comes behind it means nothing."""
    module = tiny.transformers_model(family)
    asked = GREEDY | dict(
        min_length=4, repetition_penalty=1.3, return_dict_in_generate=True, output_scores=True, output_logits=True
    )
    expected = module.generate(**inputs(module), **asked)
    method = Lookup(3) if drafted else None
    found = spec2seq.generate(module, **inputs(module), **asked, method=method)
    assert [*found] == ["sequences", "scores", "logits"] and torch.equal(found.sequences, expected.sequences)
    eos = module.config.eos_token_id
    for name in ("scores", "logits"):
        ours, theirs = (torch.stack(of[name], 1) for of in (found, expected))  # [rows, tokens, vocabulary]
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        for row, ids in enumerate(expected.sequences[:, 1:].tolist()):
            end = ids.index(eos) + 1 if eos in ids else len(ids)
            torch.testing.assert_close(ours[row, :end], theirs[row, :end], atol=1e-4, rtol=1e-4)


class Nothing(transformers.LogitsProcessor, transformers.StoppingCriteria):
    def __call__(self, input_ids, scores, **more):
        raise AssertionError("it is refused before it could run")


@pytest.mark.parametrize(("settings", "words"), [
    (dict(output_attentions=True, return_dict_in_generate=True), "output_attentions=True"),
    (dict(output_hidden_states=True), "output_hidden_states=True"),
    (dict(output_logits=True, num_beams=3), "output_logits=True is not supported by custom_generate in beam search"),
    (dict(logits_processor=LogitsProcessorList([Nothing()])), "logits_processor (Nothing)"),
    (dict(stopping_criteria=StoppingCriteriaList([Nothing()])), "stopping_criteria (Nothing)"),
    (dict(prefix_allowed_tokens_fn=lambda row, ids: [5]), "prefix_allowed_tokens_fn"),
    (dict(decoder_input_ids=torch.full((4, 2), 2), decoder_attention_mask=torch.tensor([[1, 0]] * 4)),
     "decoder_attention_mask of row 0 is not zeros and then ones"),
    (dict(decoder_input_ids=torch.full((1, 2), 2)), "decoder_input_ids have 1 rows for 4 sources"),
    (dict(decoder_input_ids=torch.tensor([[2, 10**6]] * 4)), "row 0 of decoder_input_ids has the token id 1000000"),
    (dict(decoder_input_ids=torch.full((4, 2), 2), decoder_attention_mask=torch.zeros(4, 2)),
     "decoder_attention_mask of row 0 is not zeros and then ones"),
    (dict(max_time=1.0), "max_time=1.0"),
    (dict(assistant_ensemble_weight=0.5), "assistant_ensemble_weight=0.5"),
    (dict(num_beams=2, prompt_lookup_num_tokens=3), "num_beams=2 and prompt_lookup_num_tokens"),
    (dict(max_new_tokens=400), "max_length is 401"),
])  # fmt: skip
def test_what_cannot_be_honoured_is_named(settings, words):
    module = tiny.transformers_model("bart")
    with pytest.raises(Spec2SeqError) as error:
        module.generate(**inputs(module), **(GREEDY | settings), custom_generate=spec2seq.custom_generate())
    assert words in str(error.value)


def test_sources_that_cannot_be_read():
    module = tiny.transformers_model("bart")
    batch = inputs(module)
    flipped = {name: tensor.flip(1) for name, tensor in batch.items()}
    with pytest.raises(Spec2SeqError, match="attention_mask of row . is not ones and then zeros; pad sources on the"):
        spec2seq.generate(module, **flipped, **GREEDY)
    states = module.get_encoder()(**batch)
    with pytest.raises(Spec2SeqError, match="reads input_ids"):
        spec2seq.generate(module, encoder_outputs=states, attention_mask=batch["attention_mask"], **GREEDY)
    with pytest.raises(Spec2SeqError, match="inputs_embeds is not supported by custom_generate; allowed: input_ids"):
        embedded = module.get_input_embeddings()(batch["input_ids"])
        spec2seq.generate(module, inputs_embeds=embedded, attention_mask=batch["attention_mask"], **GREEDY)


def test_modules_that_cannot_be_used():
    module = fresh("bart")
    with pytest.raises(UsageError, match="is in training mode, where it drops out; call model.eval"):
        spec2seq.generate(module.train(), **inputs(module), **GREEDY)
    other = foreign.bare("prophetnet")
    with pytest.raises(Spec2SeqError, match="ProphetNet.*: model type 'prophetnet' is not supported"):
        spec2seq.generate(other, input_ids=torch.tensor([[5, 2]]), max_new_tokens=3)


def test_arguments_that_contradict():
    module = tiny.transformers_model("bart")
    with pytest.raises(UsageError, match="method and assistant_model are both given"):
        spec2seq.custom_generate(Lookup(2), assistant_model=module)
    with pytest.raises(UsageError, match="assistant_model is int; allowed: a Transformers model or a Seq2Seq"):
        spec2seq.generate(module, **inputs(module), **GREEDY, assistant_model=5)
    with pytest.raises(UsageError, match="executor is 'fast'; allowed: torch, native"):
        spec2seq.custom_generate(executor="fast")
    with pytest.raises(UsageError, match="num_beams=4 and a drafter do not go together"):
        spec2seq.generate(module, **inputs(module), **(GREEDY | {"num_beams": 4}), assistant_model=noisy(module))


def test_a_seq2seq_assists_too():
    module = tiny.transformers_model("bart")
    little = Seq2Seq.from_transformers(noisy(module))
    custom = spec2seq.custom_generate(assistant_model=little)
    batch = inputs(module)
    found = module.generate(**batch, **GREEDY, custom_generate=custom)
    assert torch.equal(found, module.generate(**batch, **GREEDY)) and custom.stats.drafted > 0


def test_transformers_still_has_the_arguments_that_are_read_from_its_frame():
    names = inspect.signature(transformers.GenerationMixin.generate).parameters
    assert set(spec2seq.dropin.generate.Call.__dataclass_fields__) <= set(names)
