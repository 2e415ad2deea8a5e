"""Families that run in Transformers' own modules: token ids in float64 against Transformers' own generation."""

import warnings

import foreign
import pytest
import tiny
import transformers
from typer.testing import CliRunner

import spec2seq
from spec2seq import Assisted, Beam, Greedy, Lookup, Sample, Seq2Seq, Spec2SeqError, UsageError
from spec2seq.cli import app
from spec2seq.models import transformers_model
from spec2seq.models.loading import load_config

KINDS = (
    "led", "bigbird_pegasus", "pegasus_x", "blenderbot-small", "longt5-local", "longt5-transient-global",
    "nllb-moe", "switch_transformers", "t5gemma", "encoder-decoder",
)  # fmt: skip
CAP = foreign.STEPS


def foreign_module(kind: str):
    return foreign.case(kind).module


@pytest.fixture(scope="module", params=KINDS)
def case(request):
    """A module, our model of it, sources and what Transformers writes for each by itself."""
    found = foreign.case(request.param)
    return found.module, Seq2Seq.from_transformers(found.module), found.sources, found.expected


def test_greedy_equals_that_of_transformers(case):
    theirs, model, sources, expected = case
    assert len({len(row) for row in expected}) >= 2 and len({tuple(row) for row in expected}) >= 3
    assert foreign.generated(theirs, sources[1], CAP) == expected[1]
    for size in (1, 4):
        assert model.generate(sources, max_new_tokens=CAP, batch_size=size).sequences == expected
    drawn = [model.generate(sources, Sample(seed=3), max_new_tokens=8, batch_size=size).sequences for size in (1, 4)]
    assert drawn[0] == drawn[1] != [row[:8] for row in expected]


def test_drafts_change_nothing(case):
    """Rows of a batch draft and roll back by themselves, and have different lengths from the first iteration on."""
    _, model, sources, expected = case
    little = tiny.noisy_copy(model, 0.03).drafter()
    for size in (1, 4):
        found = model.generate(sources, Assisted(little, 4), max_new_tokens=CAP, batch_size=size)
        assert found.sequences == expected
        assert 0 < found.stats.accepted < found.stats.drafted
        assert found.stats.tokens_per_verifier_call > 1
        assert model.generate(sources, Lookup(5), max_new_tokens=CAP, batch_size=size).sequences == expected


@pytest.mark.parametrize("kind", KINDS)
def test_beams_equal_those_of_transformers(kind):
    theirs = foreign_module(kind)
    sources = foreign.sources(theirs, 3, 6)
    expected = [foreign.generated(theirs, source, 8, num_beams=3, length_penalty=0.6) for source in sources]
    method = Beam(3, length_penalty=0.6)
    assert Seq2Seq.from_transformers(theirs).generate(sources, method, max_new_tokens=8).sequences == expected


@pytest.mark.parametrize("kind", ["led", "switch_transformers"])
def test_the_dropin_gives_the_modules_own_tokens(kind):
    module = foreign_module(kind)
    rows = foreign.sources(module, 4, 8)
    asked = foreign.padded(module, rows) | dict(max_new_tokens=CAP, do_sample=False)
    custom = spec2seq.custom_generate(assistant_model=tiny.noisy_copy(Seq2Seq.from_transformers(module), 0.02))
    for beams, made in ((1, custom), (3, spec2seq.custom_generate())):
        expected = module.generate(**asked, num_beams=beams)
        assert module.generate(**asked, num_beams=beams, custom_generate=made).tolist() == expected.tolist()
    assert custom.stats.drafted > 0 and not module.training


def test_the_dropin_sees_a_vocabulary_that_was_resized():
    module = foreign.bare("led")
    asked = foreign.padded(module, foreign.sources(module, 2, 6)) | dict(max_new_tokens=5, do_sample=False, num_beams=1)
    for rows in (None, module.config.vocab_size + 6):
        if rows is not None:
            module.resize_token_embeddings(rows)
        assert spec2seq.generate(module, **asked).tolist() == module.generate(**asked).tolist()


def test_the_longest_outputs_and_sources_that_positions_allow():
    """LED has fewer positions for outputs than for sources; a draft's padding lies beyond them."""
    theirs = foreign_module("led")
    model = Seq2Seq.from_transformers(theirs)
    sources = [*foreign.sources(theirs, 5, 7), [*range(3, 63), *range(3, 63), theirs.config.eos_token_id]]
    expected = [foreign.generated(theirs, source, 48) for source in sources]
    assert max(map(len, expected)) == 48
    little = tiny.noisy_copy(model, 0.02).drafter()
    for method in (Greedy(), Lookup(9), Assisted(little, 7)):
        assert model.generate(sources, method, max_new_tokens=48, batch_size=4).sequences == expected
    with pytest.raises(UsageError, match="max_new_tokens is 49; allowed: 1 to 48"):
        model.generate(sources, max_new_tokens=49)
    with pytest.raises(Spec2SeqError, match="source 1 has 193 tokens; the model allows 192"):
        model.generate([[5] * 193])


def test_a_folder_is_loaded_and_saved_and_it_is_said_once(tmp_path):
    theirs, source = foreign_module("pegasus_x"), [5, 6, 7, 8, 9]
    theirs.save_pretrained(tmp_path / "first")
    tiny.tokenizer(theirs).save_pretrained(tmp_path / "first")
    transformers_model._warn.cache_clear()
    with pytest.warns(UserWarning, match="pegasus_x models run in Transformers' own modules"):
        model = Seq2Seq.from_pretrained(tmp_path / "first", dtype="float64")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path / "second")
        again = Seq2Seq.from_pretrained(tmp_path / "second", dtype="float64")
    expected = foreign.generated(theirs, source, CAP)
    assert [found.generate([source], max_new_tokens=CAP).sequences for found in (model, again)] == [[expected]] * 2
    assert model.fingerprint() == again.fingerprint()
    assert model.score([source], [expected]) == pytest.approx(again.score([source], [expected]))
    for asked, words in ((dict(dtype="int8"), "dtype int8"), (dict(executor="native"), "executor native")):
        with pytest.raises(UsageError, match=f"{words} is not for models that run in Transformers' own modules"):
            Seq2Seq.from_pretrained(tmp_path / "first", **asked)


def test_the_command_says_it_on_stderr(tmp_path):
    theirs = foreign_module("pegasus_x")
    theirs.save_pretrained(tmp_path / "model")
    tiny.tokenizer(theirs).save_pretrained(tmp_path / "model")
    command = ["translate", "--model", str(tmp_path / "model"), "--max-new-tokens", "4"]
    result = CliRunner().invoke(app, command, input="w5 w6\n")
    assert result.exit_code == 0 and result.stdout.count("\n") == 1
    assert result.stderr == transformers_model.notice("pegasus_x") + "\n"


def test_what_cannot_work_is_refused_by_name(monkeypatch):
    with pytest.raises(Spec2SeqError, match="model type 'prophetnet' is not supported: its decoder takes one token at"):
        Seq2Seq.from_transformers(foreign.bare("prophetnet"))
    experts = foreign.bare("nllb-moe")
    experts.config.moe_eval_capacity_token_fraction = 0.5
    with pytest.raises(Spec2SeqError, match="moe_eval_capacity_token_fraction is 0.5; allowed: at least 1"):
        Seq2Seq.from_transformers(experts)
    with pytest.raises(UsageError, match="LEDForConditionalGeneration is in training mode"):
        Seq2Seq.from_transformers(foreign.bare("led").train())
    monkeypatch.setitem(transformers_model.RELATIVE, "led", None)  # whose positions are absolute
    with pytest.raises(Spec2SeqError, match="LEDForConditionalGeneration cannot be decoded here: over a cache"):
        Seq2Seq.from_transformers(foreign.bare("led"))
    monkeypatch.undo()
    model = Seq2Seq.from_transformers(foreign_module("led"))
    with pytest.raises(UsageError, match="a led model runs whole"):
        model.early_exit(1)


def test_a_configuration_of_something_else_is_refused(tmp_path):
    sound = transformers.Speech2TextConfig()
    for config, reason in ((transformers.GPT2Config(), "; supported: bart"), (sound, ": of models that read sound")):
        config.save_pretrained(tmp_path / config.model_type)
        with pytest.raises(Spec2SeqError, match=f"{config.model_type}' is not supported{reason}"):
            load_config(str(tmp_path / config.model_type))
