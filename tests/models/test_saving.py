"""What is written is what Transformers and we load back; what cannot be loaded is said in one line."""

import json
import stat

import pytest
import safetensors.torch
import tiny
import tiny_sound
import torch
import transformers

from spec2seq import Seq2Seq, Spec2SeqError, UsageError
from spec2seq.models import families, loading


def named(family: str) -> Seq2Seq:
    """A tiny model with a tokenizer."""
    model = tiny.seq2seq(family)
    return Seq2Seq(model.model, model.config, tiny.tokenizer(model), model.generation_config)


def logits(theirs, sources):
    ids = torch.arange(3, 9).repeat(len(sources), 1)
    return theirs(**tiny.encoder_inputs(theirs, sources), decoder_input_ids=ids).logits


def check_transformers_loads(folder, theirs, unread=None):
    """Without a word, and it computes what `theirs` does. `unread`: a weight that may be another."""
    back, report = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        folder, dtype=torch.float64, output_loading_info=True
    )
    assert not any(report.values()), report
    weights = theirs.state_dict()
    for name, weight in back.state_dict().items():
        assert name == unread or torch.equal(weight, weights[name]), name
    # The same weights elsewhere in memory: some processors then add up in another order.
    sources = tiny.sources(theirs, 3)
    torch.testing.assert_close(logits(back, sources), logits(theirs, sources))


def test_transformers_loads_what_is_saved(family, tmp_path):
    named(family).save_pretrained(tmp_path / "model")
    check_transformers_loads(tmp_path / "model", tiny.transformers_model(family))


@pytest.mark.parametrize("name", ["bart", "marian", "t5"])
def test_a_model_whose_tables_differ_keeps_a_third_that_nobody_reads(name, tmp_path):
    """As Transformers makes it where the config ties nothing."""
    theirs = tiny.transformers_model(name)
    config = type(theirs.config).from_dict(theirs.config.to_dict() | {"tie_word_embeddings": False})
    torch.manual_seed(1)
    untied = type(theirs)(config).double().eval()
    untied.save_pretrained(tmp_path / "theirs")
    tiny.tokenizer(tiny.seq2seq(name)).save_pretrained(tmp_path / "theirs")
    Seq2Seq.from_pretrained(tmp_path / "theirs", dtype="float64").save_pretrained(tmp_path / "ours")
    check_transformers_loads(tmp_path / "ours", untied, "shared.weight" if name == "t5" else "model.shared.weight")


def test_what_is_saved_is_loaded_back(family, tmp_path):
    model = named(family)
    model.save_pretrained(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]  # nothing temporary is left
    back = Seq2Seq.from_pretrained(tmp_path / "model", dtype="float64")
    texts = ["w5 w9 w33", "w20", "w7 w7 w8 w50 w51"]
    expected = model.generate(texts, max_new_tokens=12)
    found = back.generate(texts, max_new_tokens=12)
    assert found.sequences == expected.sequences
    assert found.texts == expected.texts and any(expected.texts)
    assert back.tokenizer.get_vocab() == model.tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("pegasus", "embed_positions"),
        ("fsmt", "embed_positions"),
        ("whisper", "encoder.embed_positions"),
        ("mvp", "final_logits_bias"),
    ],
)
def test_what_transformers_computes_may_be_missing(name, missing, tmp_path):
    theirs = tiny_sound.transformers_model() if name == "whisper" else tiny.transformers_model(name)
    theirs.save_pretrained(tmp_path)
    file, wanted = tmp_path / "model.safetensors", loading.load_model(str(tmp_path), "float64")[0].state_dict()
    wanted.pop("head.bias", None)  # which is then zero
    for part, refused in ((missing, False), ("layer_norm", True)):
        state = safetensors.torch.load_file(file)
        kept = {tensor: values for tensor, values in state.items() if part not in tensor}
        assert len(kept) < len(state)
        safetensors.torch.save_file(kept, file, {"format": "pt"})
        if refused:
            with pytest.raises(Spec2SeqError, match="the weights lack .* such as .*layer_norm"):
                loading.load_model(str(tmp_path), "float64")
        else:
            found = loading.load_model(str(tmp_path), "float64")[0].state_dict()
            assert all(torch.equal(found[tensor], values) for tensor, values in wanted.items())


def test_the_configuration_of_a_saved_model_is_left_alone(tmp_path):
    model = named("bart")
    before = model.config.to_dict()
    model.save_pretrained(tmp_path / "model")
    assert model.config.to_dict() == before
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "float64"


def test_an_existing_folder_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(Spec2SeqError, match="model: exists already"):
        named("t5").save_pretrained(tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == []


def test_nothing_half_written_stays(tmp_path):
    class Broken:
        def save_pretrained(self, folder):
            raise OSError("disk full")

    model = tiny.seq2seq("t5")
    with pytest.raises(OSError, match="disk full"):
        Seq2Seq(model.model, model.config, Broken(), model.generation_config).save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_saved_folder_can_be_read_by_others(tmp_path):
    tmp_path.joinpath("plain").mkdir()
    named("t5").save_pretrained(tmp_path / "model")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "model")}
    assert len(modes) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_is_the_one_asked_for(dtype, tmp_path):
    named("marian").save_pretrained(tmp_path / "model")
    back = Seq2Seq.from_pretrained(tmp_path / "model", dtype=dtype)
    assert {parameter.dtype for parameter in back.model.parameters()} == {getattr(torch, dtype)}
    assert len(back.generate(["w5 w6"], max_new_tokens=5).sequences[0]) in range(1, 6)


def test_t5_in_half_precision_is_refused(tmp_path):
    named("t5").save_pretrained(tmp_path / "model")
    with pytest.raises(Spec2SeqError, match="T5 overflows in float16; use bfloat16 or float32"):
        Seq2Seq.from_pretrained(tmp_path / "model", dtype="float16")


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(Spec2SeqError) as error:
        Seq2Seq.from_pretrained(tmp_path)
    assert str(error.value) == f"{tmp_path}: no model here: config.json is missing"
    assert error.value.exit_code == 1


@pytest.mark.parametrize(
    ("config", "name"),
    [(transformers.BertConfig(hidden_size=8, num_attention_heads=2), "bert"), (transformers.GPT2Config(), "gpt2")],
)
def test_a_model_of_another_family(config, name, tmp_path):
    config.save_pretrained(tmp_path)
    with pytest.raises(Spec2SeqError) as error:
        Seq2Seq.from_pretrained(tmp_path)
    assert (
        str(error.value)
        == f"{tmp_path}: model type {name!r} is not supported; supported: {', '.join(families.FAMILIES)}"
    )


@pytest.mark.parametrize("text", ["{", '{"model_type": "no such model"}', "{}"])
def test_a_broken_configuration(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(Spec2SeqError) as error:
        Seq2Seq.from_pretrained(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: neither a model folder nor an id that could be loaded: ")
    assert "\n" not in str(error.value)


def test_a_folder_with_a_configuration_only(tmp_path):
    tiny.config("t5").save_pretrained(tmp_path)
    with pytest.raises(Spec2SeqError, match="could be loaded") as error:
        Seq2Seq.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_an_error_of_two_lines_says_both(monkeypatch, tmp_path):
    named("bart").save_pretrained(tmp_path / "model")

    def broken(*given):
        raise RuntimeError('Error(s) in loading state_dict for EncoderDecoder:\n\tMissing key(s): "a". \n\tAnd more.')

    monkeypatch.setattr(loading.families, "load", broken)
    with pytest.raises(Spec2SeqError, match='loading state_dict for EncoderDecoder: Missing key.s.: "a".$'):
        Seq2Seq.from_pretrained(tmp_path / "model")


def test_a_decoder_start_that_only_the_generation_config_has(tmp_path):
    theirs = tiny.transformers_model("bart")
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"decoder_start_token_id": None}))
    model, config, generation = loading.load_model(str(tmp_path), "float64")
    assert generation.decoder_start_token_id != theirs.config.bos_token_id  # which Transformers would fall back to
    sources = tiny.sources(theirs, 3)
    found = Seq2Seq(model, config, None, generation).generate(sources, max_new_tokens=9).sequences
    assert found == Seq2Seq.from_transformers(theirs).generate(sources, max_new_tokens=9).sequences


def test_a_folder_without_a_tokenizer(family, tmp_path):
    """Transformers makes up an empty one for T5 and BART: every text would be unknown tokens."""
    tiny.seq2seq(family).save_pretrained(tmp_path / "model")
    with pytest.raises(Spec2SeqError, match="no tokenizer here: expected one of tokenizer.json"):
        Seq2Seq.from_pretrained(tmp_path / "model")


def test_a_broken_tokenizer(tmp_path):
    tiny.seq2seq("marian").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(Spec2SeqError, match="its tokenizer could not be loaded: ") as error:
        Seq2Seq.from_pretrained(tmp_path / "model")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int3"}, "dtype is 'int3'; allowed: float32, int8, "),
        ({"device": "tpu9000"}, "device is 'tpu9000'; allowed: cpu, cuda"),
    ],
)
def test_a_bad_dtype_or_device(options, message, tmp_path):
    with pytest.raises(UsageError) as error:
        Seq2Seq.from_pretrained(tmp_path, **options)
    assert str(error.value).startswith(message)
    assert error.value.exit_code == 2


def test_cuda_where_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="device is 'cuda', but no CUDA device is here; allowed: cpu"):
        Seq2Seq.from_pretrained(tmp_path, device="cuda")


def test_a_model_for_a_gpu_turns_the_attention_off_that_plans(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        loading.torch_device("cpu")
        assert torch.backends.cuda.cudnn_sdp_enabled()
        assert loading.torch_device("cuda:0") == torch.device("cuda", 0)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
