"""The drop-in on a live module that hears: Transformers' own `generate` of Whisper with our engine inside."""

import copy

import numpy as np
import pytest
import tiny_sound
import torch
import transformers
from models.native_models import needs_compiler

import spec2seq
from spec2seq import Assisted, Beam, BiLD, Lookup, Spec2SeqError, UsageError
from spec2seq.dropin.generate import share

CAP = 30
SPOKEN = {"language": "en", "task": "translate"}


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity_warning()


def features(count: int = 6, dtype: torch.dtype = torch.double) -> torch.Tensor:
    made = tiny_sound.extractor()(tiny_sound.sounds(count), sampling_rate=tiny_sound.RATE, return_tensors="pt")
    return made.input_features.to(dtype)


def long_features(count: int = 3) -> dict[str, torch.Tensor]:
    """Of sounds of several windows, of different lengths."""
    sounds = [np.concatenate(tiny_sound.sounds(3 + number, 0.9, number)) for number in range(count)]
    made = tiny_sound.extractor()(sounds, sampling_rate=tiny_sound.RATE, return_tensors="pt", truncation=False,
                                  padding="longest", return_attention_mask=True)  # fmt: skip
    return {"input_features": made.input_features.double(), "attention_mask": made.attention_mask}


def both(module, settings: dict, method=None, **inputs) -> tuple:
    """What Transformers returns, what we do, and the callable with the counts of its last call."""
    custom = spec2seq.custom_generate(method)
    torch.manual_seed(3)
    theirs = module.generate(**inputs, **copy.deepcopy(settings))
    torch.manual_seed(3)
    return theirs, module.generate(**inputs, **copy.deepcopy(settings), custom_generate=custom), custom


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize(
    "more", [{}, {"num_beams": 3}, {"return_timestamps": True}, {"repetition_penalty": 1.3, "min_new_tokens": 9}]
)
def test_windows_are_transformers(seed, more):
    module = tiny_sound.transformers_model(seed)
    theirs, ours, _ = both(module, SPOKEN | more | {"max_new_tokens": CAP}, input_features=features())
    assert torch.equal(ours, theirs) and len(set((ours != tiny_sound.END).sum(1).tolist())) > 1


def test_outputs_that_begin_with_tokens():
    module, begins = tiny_sound.transformers_model(0), ("startoftranscript", "de", "transcribe", "notimestamps")
    asked = {"decoder_input_ids": torch.tensor([[tiny_sound.IDS[f"<|{name}|>"] for name in begins]] * 3)}
    for more in ({}, {"return_timestamps": True}):
        theirs = module.generate(features(3), **asked, **more, max_new_tokens=CAP)
        assert torch.equal(spec2seq.generate(module, features(3), **asked, **more, max_new_tokens=CAP), theirs)


def test_encoder_outputs_alone_are_refused():
    module = tiny_sound.transformers_model(0)
    with pytest.raises(Spec2SeqError, match="hears input_features .batch, 8, 100., also beside encoder_outputs"):
        spec2seq.generate(module, encoder_outputs=module.get_encoder()(features(2)), language="en")


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("method", [Lookup(3), "early exit"])
def test_drafts_change_nothing(seed, method):
    module = tiny_sound.transformers_model(seed)
    if method == "early exit":
        method = Assisted(share(module).early_exit(1), 3)
    settings = SPOKEN | {"max_new_tokens": CAP, "return_timestamps": True}
    theirs, ours, custom = both(module, settings, method, input_features=features())
    assert torch.equal(ours, theirs) and custom.stats.drafted > 0 and custom.stats.rows == 6


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"condition_on_prev_tokens": True},
        {"condition_on_prev_tokens": True, "num_beams": 2},
        {"prompt_ids": torch.tensor([tiny_sound.IDS["<|startofprev|>"], 7, 8, 9])},
        {"condition_on_prev_tokens": True, "prompt_condition_type": "all-segments",
         "prompt_ids": torch.tensor([tiny_sound.IDS["<|startofprev|>"], 7, 8, 9])},
    ],
)  # fmt: skip
@pytest.mark.parametrize("drafted", [False, True])
def test_long_sounds_are_transformers(more, drafted):
    """What windows go on from has another length in every row, and another start."""
    module = tiny_sound.transformers_model(0)
    if drafted and more.get("num_beams"):
        pytest.skip("beams are not drafted")
    method = Assisted(share(module).early_exit(1), 3) if drafted else None
    settings = SPOKEN | {"return_timestamps": True, "max_new_tokens": 20} | more
    theirs, ours, custom = both(module, settings, method, **long_features())
    assert torch.equal(ours, theirs) and ours.shape[1] > CAP and custom.stats.verifier_passes > 0
    assert bool(custom.stats.drafted) is drafted


@pytest.mark.parametrize("english", [False, True])
def test_beams_with_thresholds(english):
    """Their scores are one more pass; which windows are heard again hangs on them."""
    module = copy.deepcopy(tiny_sound.transformers_model(0, english))
    module.generation_config.top_k = 1
    spoken = {} if english else SPOKEN
    for threshold in (-0.4, -2.5):
        settings = spoken | {
            "return_timestamps": True, "max_new_tokens": 20, "num_beams": 2, "temperature": (0.0, 0.6),
            "logprob_threshold": threshold, "no_speech_threshold": 0.5, "compression_ratio_threshold": 1.3,
        }  # fmt: skip
        theirs, ours, _ = both(module, settings, **long_features())
        assert torch.equal(ours, theirs)
        theirs, ours, _ = both(module, settings | {"num_beams": 1}, Beam(2), **long_features())  # the method's beams


def test_as_a_folder_and_as_a_function(tmp_path, monkeypatch):
    """Whisper's own `generate` calls the folder's for each window."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    module = tiny_sound.transformers_model(0)
    place = str(spec2seq.save_custom_generate(tmp_path / "generation"))
    thresholds = {"temperature": (0.0,), "logprob_threshold": -9.0}
    for more in ({}, {"num_beams": 2}, {"condition_on_prev_tokens": True}, thresholds):
        settings = SPOKEN | {"return_timestamps": True, "max_new_tokens": 20} | more
        wanted = module.generate(**long_features(), **settings)
        assert torch.equal(spec2seq.generate(module, **long_features(), **settings), wanted)
        found = module.generate(**long_features(), **settings, custom_generate=place, trust_remote_code=True)
        assert torch.equal(found, wanted)
    found = spec2seq.generate(module, features(), **SPOKEN, max_new_tokens=CAP, method=Lookup(3))
    assert torch.equal(found, module.generate(features(), **SPOKEN, max_new_tokens=CAP))
    module.save_pretrained(tmp_path / "ears")
    spec2seq.save_custom_generate(tmp_path / "ears")
    loaded = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "ears", trust_remote_code=True)
    found = loaded.generate(input_features=features(), **SPOKEN, max_new_tokens=CAP)
    assert torch.equal(found, module.generate(features(), **SPOKEN, max_new_tokens=CAP))


def test_doubtful_windows_are_heard_again_and_silent_ones_left_out():
    """Sampling from one likeliest token is the same wherever it is done."""
    module = copy.deepcopy(tiny_sound.transformers_model(0))
    module.generation_config.top_k = 1
    said = []
    for no_speech in (1e-9, 0.999):
        settings = SPOKEN | {
            "return_timestamps": True, "max_new_tokens": 20, "temperature": (0.0, 0.4, 0.8), "logprob_threshold": -0.4,
            "compression_ratio_threshold": 1.3, "no_speech_threshold": no_speech, "return_segments": True,
        }  # fmt: skip
        for method in (None, Lookup(3)):
            theirs, ours, _ = both(module, settings, method, **long_features())
            assert torch.equal(ours["sequences"], theirs["sequences"])
            assert [len(one) for one in ours["segments"]] == [len(one) for one in theirs["segments"]]
        said.append(ours["sequences"].shape[1])
    assert said[0] < said[1]  # all that was doubtful was taken for silent
    with pytest.raises(UsageError, match="do_sample is True, but the method given is Speculative"):
        both(module, settings, BiLD(share(module).early_exit(1)), **long_features())


@pytest.mark.parametrize("more", [{}, {"do_sample": True, "top_k": 1}, {"do_sample": True, "temperature": 0.7}])
def test_scores_and_logits(more):
    module = tiny_sound.transformers_model(0)
    asked = SPOKEN | {"max_new_tokens": CAP, "return_dict_in_generate": True, "output_scores": True,
                      "output_logits": True} | more  # fmt: skip
    if more.get("temperature"):  # drawn otherwise than by Transformers, so only what is left to draw from is compared
        found = module.generate(features(), **asked, custom_generate=spec2seq.custom_generate())
        scores = torch.stack(found.scores, 1)
        assert ((scores > -torch.inf).sum(-1) == 50).all()  # its default top_k
        left = torch.stack(found.logits, 1) / 0.7
        torch.testing.assert_close(scores[scores > -torch.inf], left[scores > -torch.inf])
        return
    theirs, ours, _ = both(module, asked, input_features=features())
    assert torch.equal(ours.sequences, theirs.sequences)
    width = ours.sequences.shape[1] - len(ours.scores)
    for name in ("scores", "logits"):
        mine, wanted = (torch.stack(of[name], 1) for of in (ours, theirs))
        for row, ids in enumerate(theirs.sequences[:, width:].tolist()):
            end = ids.index(tiny_sound.END) + 1 if tiny_sound.END in ids else len(ids)
            torch.testing.assert_close(mine[row, :end], wanted[row, :end], atol=1e-5, rtol=1e-5)


def test_english_alone():
    module = tiny_sound.transformers_model(0, True)
    settings = {"return_timestamps": True, "max_new_tokens": 20, "temperature": (0.0,), "logprob_threshold": -0.4,
                "no_speech_threshold": 0.5}  # fmt: skip
    theirs, ours, _ = both(module, settings, **long_features())
    assert torch.equal(ours, theirs)


def test_the_pipeline_of_transformers():
    module, words = tiny_sound.transformers_model(0), copy.deepcopy(tiny_sound.tokenizer())
    words._decode_asr = lambda outputs, **_: (
        str([one["tokens"].tolist() for one in outputs]),
        {},
    )  # WhisperTokenizer's
    made = transformers.pipeline("automatic-speech-recognition", model=module, tokenizer=words,
                                 feature_extractor=tiny_sound.extractor(), dtype=torch.double)  # fmt: skip
    asked = SPOKEN | {"max_new_tokens": CAP, "num_beams": 1}  # the pipeline's own are 5
    custom = spec2seq.custom_generate(Lookup(3))
    sounds = [{"raw": sound, "sampling_rate": tiny_sound.RATE} for sound in tiny_sound.sounds(4)]
    wanted = made([dict(sound) for sound in sounds], generate_kwargs=asked)
    found = made(sounds, generate_kwargs=asked | {"custom_generate": custom})
    assert found == wanted and custom.stats.new_tokens > 0


@needs_compiler
def test_in_the_compiled_executor():
    module = copy.deepcopy(tiny_sound.transformers_model(3)).float()
    settings = SPOKEN | {"max_new_tokens": CAP}
    wanted = module.generate(features(dtype=torch.float), **settings)
    for executor in ("native", "torch", "native"):
        custom = spec2seq.custom_generate(Lookup(3), executor=executor)
        assert torch.equal(module.generate(features(dtype=torch.float), **settings, custom_generate=custom), wanted)


def test_the_weights_are_the_modules_own():
    module = copy.deepcopy(tiny_sound.transformers_model(0))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    model = share(module)
    assert share(module) is model and share(module, "torch") is model
    after = module.state_dict()
    assert [*after] == [*before] and all(torch.equal(after[name], before[name]) for name in before)
    ours, theirs = model.model.decoder.layers[0], module.model.decoder.layers[0]
    assert ours.self_qkv.weight.data_ptr() == theirs.self_attn.q_proj.weight.data_ptr()
    assert ours.self_qkv.bias.data_ptr() == theirs.self_attn.q_proj.bias.data_ptr()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    theirs, ours, _ = both(module, SPOKEN | {"max_new_tokens": CAP}, input_features=features())
    assert torch.equal(ours, theirs) and share(module) is model
    single = module.float()  # other storage, another type
    assert share(single) is not model
    theirs, ours, _ = both(single, SPOKEN | {"max_new_tokens": CAP}, input_features=features(dtype=torch.float))
    assert torch.equal(ours, theirs)


class Nothing(transformers.LogitsProcessor):
    def __call__(self, input_ids, scores):
        raise AssertionError("it is refused before it could run")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"return_token_timestamps": True}, "output_attentions=True is not supported"),
        ({"logits_processor": transformers.LogitsProcessorList([Nothing()])}, "logits_processor (Nothing)"),
    ],
)
def test_what_cannot_be_honoured_is_named(settings, words):
    module = copy.deepcopy(tiny_sound.transformers_model(0))
    module.generation_config.alignment_heads = [[0, 0]]
    with pytest.raises(Spec2SeqError) as error:
        module.generate(features(), **SPOKEN, **settings, custom_generate=spec2seq.custom_generate())
    assert words in str(error.value)
