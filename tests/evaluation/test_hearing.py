"""The comparison of speech engines, on a tiny model with sounds of its own."""

import copy
import json

import pytest
import soundfile
import tiny_sound

from spec2seq import Seq2Seq, Spec2SeqError
from spec2seq.evaluation import hearing
from spec2seq.models.cached_drafter import CachedDrafter
from spec2seq.models.cached_drafter_shape import CachedDrafterConfig, CachedDrafterShape


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("hearing") / "ears"
    base = tiny_sound.seq2seq(0)
    model = Seq2Seq(copy.deepcopy(base.model).float(), base.config, base.tokenizer, base.generation_config)
    model.extractor = base.extractor
    model.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    made = tmp_path_factory.mktemp("sounds")
    for number, sound in enumerate(tiny_sound.sounds(4)):
        soundfile.write(made / f"{number}.wav", sound, tiny_sound.RATE)
    (made / "sounds.tsv").write_text("".join(f"{n}.wav\tw{n} w{n + 1}\n" for n in range(4)), encoding="utf-8")
    return made / "sounds.tsv"


def test_all_engines_take_part(folder, sounds, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hearing, "CAP", 30)
    hearing.main(["--model", str(folder), "--sounds", str(sounds), "--out", str(tmp_path), "--rounds", "2",
                  "--threads", "1", "--batch-sizes", "1", "2"])  # fmt: skip
    found = json.loads((tmp_path / "hearing.json").read_text(encoding="utf-8"))
    assert capsys.readouterr().out == f"{tmp_path / 'hearing.json'}\n{tmp_path / 'hearing.md'}\n"
    engines = ["spec2seq float32", "spec2seq int8", "Transformers float32", "CTranslate2 float32", "CTranslate2 int8"]
    assert [(row["engine"], row["batch_size"]) for row in found["rows"]] == [(e, n) for n in (1, 2) for e in engines]
    for row in found["rows"]:
        assert row["seconds"] > 0 and all(spread["median"] > 0 for spread in row["speedup"].values())
    assert found["quality"]["spec2seq float32"]["same_tokens"] == 1.0  # CTranslate2 forbids timestamps, too
    assert found["quality"]["spec2seq float32"]["new_tokens"] > 4
    assert "## What they write" in (tmp_path / "hearing.md").read_text(encoding="utf-8")


def test_a_drafter_takes_part(folder, sounds, tmp_path, monkeypatch):
    monkeypatch.setattr(hearing, "CAP", 30)
    monkeypatch.setattr(hearing, "ctranslate2_engine", lambda *arguments: lambda heard, size: [[1]] * len(heard))
    model = Seq2Seq.from_pretrained(folder)
    shape = CachedDrafterShape(3, feed_forward=64, hidden_layers=(1, 2))
    drafter = CachedDrafter(CachedDrafterConfig(model.model.architecture, shape, model.fingerprint()))
    drafter.start_from(model.model)
    drafter.save_pretrained(tmp_path / "drafter")
    hearing.main(["--model", str(folder), "--drafter", str(tmp_path / "drafter"), "--sounds", str(sounds), "--out",
                  str(tmp_path), "--rounds", "1", "--threads", "1", "--batch-sizes", "2"])  # fmt: skip
    found = json.loads((tmp_path / "hearing.json").read_text(encoding="utf-8"))
    for dtype in ("float32", "int8"):
        drafted = next(row for row in found["rows"] if row["engine"] == f"spec2seq {dtype}, drafted")
        assert drafted["speedup"]["own"]["median"] > 0 and drafted["tokens_per_verifier_call"] >= 1
        assert found["quality"][drafted["engine"]]["same_as_greedy"] == 1.0
    assert found["manifest"]["command"].endswith("ears --drafter drafter --sounds sounds.tsv")
    assert "| spec2seq int8, drafted | 2 |" in (tmp_path / "hearing.md").read_text(encoding="utf-8")


def test_word_errors():
    assert hearing.word_errors(None, ["It's a cat, Mister."], ["it is a cat mr"]) == 0.0
    assert hearing.word_errors(None, ["a cat sat"], ["a black cat sat"]) == 0.25


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no sounds"),
        ("0.wav\n", "line 1: expected file TAB transcript"),
        ("0.wav\tw1\nno.wav\tw2\n", "no.wav: no such"),
    ],
)
def test_what_is_no_list_of_sounds(folder, sounds, text, said):
    listed = sounds.parent / "other.tsv"
    listed.write_text(text, encoding="utf-8")
    with pytest.raises(Spec2SeqError, match=said):
        hearing.main(["--model", str(folder), "--sounds", str(listed), "--out", str(sounds.parent), "--threads", "1"])
    assert not (sounds.parent / "hearing.json").exists()
