"""The folder with custom_generate/generate.py, as Transformers loads it from the hub or from a disk."""

import pytest
import tiny
import torch
import transformers
from dropin.modules import CAP, fresh, inputs, noisy

import spec2seq
from spec2seq import Lookup, Spec2SeqError

SETTINGS = dict(num_beams=1, do_sample=False, max_new_tokens=CAP)


@pytest.fixture(autouse=True)
def modules(monkeypatch, tmp_path):
    """Transformers copies the code to a place of its own before it runs it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def test_a_folder_generates(tmp_path, capsys):
    folder = str(spec2seq.save_custom_generate(tmp_path / "spec2seq-generate"))
    module = tiny.transformers_model("bart")
    batch, custom = inputs(module), dict(custom_generate=folder, trust_remote_code=True)
    expected = module.generate(**batch, **SETTINGS)
    assert torch.equal(module.generate(**batch, **SETTINGS, **custom), expected)
    beams = SETTINGS | {"num_beams": 4, "num_return_sequences": 3}
    assert torch.equal(module.generate(**batch, **beams, **custom), module.generate(**batch, **beams))
    # Arguments of ours and of Transformers' go through.
    assert torch.equal(module.generate(**batch, **SETTINGS, **custom, method=Lookup(3)), expected)
    assert torch.equal(module.generate(**batch, **SETTINGS, **custom, assistant_model=noisy(module)), expected)
    alone = {name: tensor[:1] for name, tensor in batch.items()}
    streamer = transformers.TextStreamer(tiny.tokenizer(tiny.seq2seq("bart")))
    module.generate(**alone, **SETTINGS, **custom, streamer=streamer)
    assert len(capsys.readouterr().out.split()) > 3
    with pytest.raises(Spec2SeqError, match="output_attentions=True is not supported"):
        module.generate(**batch, **SETTINGS, **custom, output_attentions=True)


def test_a_models_own_folder(tmp_path):
    """Loaded with trust_remote_code, a model generates with the code beside it."""
    module = fresh("bart")
    module.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("mine")
    spec2seq.save_custom_generate(tmp_path / "model")
    assert (tmp_path / "model" / "README.md").read_text() == "mine"
    load = transformers.AutoModelForSeq2SeqLM.from_pretrained
    trusted = load(tmp_path / "model", dtype=torch.float64, trust_remote_code=True)
    batch = inputs(module)
    expected = module.generate(**batch, **SETTINGS)
    assert torch.equal(trusted.generate(**batch, **SETTINGS, method=Lookup(3)), expected)
    with pytest.raises(Spec2SeqError, match="output_attentions=True is not supported"):
        trusted.generate(**batch, **SETTINGS, output_attentions=True)


def test_what_is_in_it(tmp_path):
    folder = spec2seq.save_custom_generate(tmp_path / "new" / "folder")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == ["README.md", "custom_generate/generate.py", "custom_generate/requirements.txt"]
    assert "- custom_generate\n" in (folder / "README.md").read_text()
    assert (folder / "custom_generate/requirements.txt").read_text() == f"spec2seq>={spec2seq.__version__}\n"
    with pytest.raises(Spec2SeqError, match="custom_generate: exists already"):
        spec2seq.save_custom_generate(folder)
    (tmp_path / "file").touch()
    with pytest.raises(Spec2SeqError, match="file: is no folder"):
        spec2seq.save_custom_generate(tmp_path / "file")
