"""Drafters for models that hear: what is distilled, encoded and learned of sounds, end to end on a tiny model."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_sound
import torch

from spec2seq import BlockDrafter, Seq2Seq, Spec2SeqError, SpecDec, UsageError
from spec2seq.speech.transcribe import transcribe
from spec2seq.training import train
from spec2seq.training.data import Pair, read_pairs
from spec2seq.training.distill import distill
from spec2seq.training.drafting import read
from spec2seq.training.inputs import inputs_of
from spec2seq.training.make_drafter import make_drafter
from spec2seq.training.recipe import DataConfig, parse_recipe
from spec2seq.training.sounds import HeardRows, encoded, learnable, spectrograms

LONG = 3  # sounds of several windows, behind the short ones
RECORDS = DataConfig("train.jsonl", "", source="source", target="target", target_tokens="tokens")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model, and sounds beside a list of them."""
    place = tmp_path_factory.mktemp("hearing")
    tiny_sound.seq2seq(0).save_pretrained(place / "model")
    sounds = tiny_sound.sounds(40)
    sounds += [np.concatenate(tiny_sound.sounds(4, 0.9, number)) for number in range(1, 1 + LONG)]
    (place / "sounds").mkdir()
    for number, sound in enumerate(sounds):
        soundfile.write(place / "sounds" / f"{number}.wav", sound, tiny_sound.RATE, subtype="FLOAT")
    names = "".join(f"sounds/{number}.wav\n" for number in range(len(sounds)))
    (place / "sounds.txt").write_text(names, encoding="utf-8")
    (place / "short.txt").write_text("".join(names.splitlines(True)[:-LONG]), encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def model(folder) -> Seq2Seq:
    return Seq2Seq.from_pretrained(folder / "model")


@pytest.fixture(scope="module")
def distilled(folder, model) -> Path:
    out = folder / "distilled.jsonl"
    return distill(model, folder / "sounds.txt", out, DataConfig("", "", language="en"), chunk_lines=16).file


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_is_distilled_is_what_transcribe_writes_window_by_window(folder, model, distilled):
    files = [str(folder / "sounds" / f"{number}.wav") for number in range(40 + LONG)]
    wanted = [
        (file, window.frame, window.prompt, window.tokens)
        for file, one in zip(files, transcribe(model, files, language="en").transcripts, strict=True)
        for window in one.windows
    ]
    found = records(distilled)
    assert [(one["source"], one["frame"], one["prompt"], one["tokens"]) for one in found] == wanted
    assert len(found) > 40 + 2 * LONG and max(one["frame"] for one in found) > 100
    assert found[0]["target"] == model.tokenizer.decode(found[0]["tokens"], skip_special_tokens=True)


def test_a_stopped_call_goes_on(folder, model, distilled, tmp_path):
    def stop(line: str) -> None:
        raise KeyboardInterrupt

    out, data = tmp_path / "out.jsonl", DataConfig("", "", language="en")
    with pytest.raises(KeyboardInterrupt):
        distill(model, folder / "sounds.txt", out, data, chunk_lines=16, report=stop)
    with pytest.raises(UsageError, match="holds chunks of another model, corpus or method"):
        distill(model, folder / "sounds.txt", out, DataConfig("", "", language="de"), chunk_lines=16)
    done = distill(model, folder / "sounds.txt", out, data, chunk_lines=16)
    assert out.read_bytes() == distilled.read_bytes() and done.lines < len(records(out))


def test_a_record_is_decoded_again_to_its_tokens(model, distilled, tmp_path):
    pairs = list(read_pairs(distilled, RECORDS))
    asked = inputs_of(model, tmp_path).asked(pairs)
    assert len(asked) == 2 and sum(len(one.prompts) for one in asked) == len(pairs)
    again = [list(row.tokens) for one in asked for row in one.model.stream(one.sources, prompts=one.prompts)]
    assert sorted(again) == sorted(list(pair.tokens) for pair in pairs)


def test_a_batch_of_encoded_windows_is_read_as_one_of_spectrograms(model, distilled, tmp_path):
    pairs = list(read_pairs(distilled, RECORDS))[:5]
    inputs, layers = inputs_of(model, tmp_path), (1, 2)
    features = torch.stack(list(spectrograms(model, pairs)))
    states = model.model.encode(features, torch.full((5,), tiny_sound.PLACES)).states
    torch.testing.assert_close(torch.tensor(inputs.rows(pairs).states).float(), states, rtol=1e-3, atol=1e-3)
    rows = HeardRows(states.numpy(), pairs)  # not rounded
    batch = inputs.collator()([rows[index] for index in range(5)])
    _, hidden = read(model.model, batch, layers)
    heard = {"input_ids": features, "attention_mask": torch.ones(features.shape[:2], dtype=torch.long)}
    _, wanted = read(model.model, batch | heard | {"encoded": None}, layers)
    torch.testing.assert_close(hidden, wanted)
    for row, pair in enumerate(pairs):
        given, length = len(pair.prompt) - 1, len(pair.prompt) - 1 + len(pair.tokens)
        assert batch["labels"][row, :given].tolist() == [-100] * given
        assert batch["labels"][row, given:length].tolist() == list(pair.tokens)
        assert batch["decoder_input_ids"][row, :length].tolist() == [*pair.prompt, *pair.tokens[:-1]]
        assert (batch["labels"][row, length:] == -100).all()


def test_windows_are_encoded_once_and_a_stopped_call_goes_on(model, distilled, tmp_path, monkeypatch):
    pairs = [pair for pair in read_pairs(distilled, RECORDS) if pair.target.strip()][:40]
    pairs += [dataclasses.replace(pairs[0], target="", tokens=(tiny_sound.END,))]  # silent
    pairs = learnable(model, pairs, DataConfig("", "", max_tokens=64), distilled)
    assert len(pairs) == 40  # nothing is learned of silence
    calls, encode = [], type(model.model).encode

    def count(self, features, lengths):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return encode(self, features, lengths)

    monkeypatch.setattr(type(model.model), "encode", count)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        encoded(model, pairs, tmp_path / "one", said.append)
    found = encoded(model, pairs, tmp_path / "one", said.append)
    assert len(calls) == 20 + 40 - 19 and (encoded(model, pairs, tmp_path / "one", said.append) == found).all()
    assert len(calls) == 20 + 40 - 19
    monkeypatch.undo()
    assert (found == encoded(model, pairs, tmp_path / "other", said.append)).all() and not said
    sound = tmp_path / "changed.wav"
    soundfile.write(sound, tiny_sound.sounds(1)[0], tiny_sound.RATE)
    one = [dataclasses.replace(pairs[0], source=str(sound))]
    before = encoded(model, one, tmp_path / "one", said.append)
    soundfile.write(sound, tiny_sound.sounds(2)[1], tiny_sound.RATE)
    assert (encoded(model, one, tmp_path / "one", said.append) != before).any()


def test_one_call_makes_a_drafter_that_writes_what_greedy_writes(folder, model, tmp_path):
    out = tmp_path / "drafter"
    made = make_drafter(folder / "model", folder / "sounds.txt", out, language="English", minutes=0.02, dev_lines=6,
                        block_size=3)  # fmt: skip
    assert made.facts["lossless"] == {"lines": 6, "equal": 6, "ties": 0} and not out.with_name("drafter.work").exists()
    assert made.facts["speedup"]["lines"] == 6 and made.facts["dev"]["tokens_per_verifier_call"] >= 1
    drafter = BlockDrafter.from_pretrained(out)
    files = [folder / "sounds" / f"{number}.wav" for number in (0, 1, 2, 41)]
    found, wanted = (
        transcribe(model, files, method, language="en").transcripts for method in (SpecDec(drafter, 3), None)
    )
    assert [one.windows for one in found] == [one.windows for one in wanted]


def test_a_recipe_distils_and_trains(folder, tmp_path):
    files = {name: f"{name}.jsonl" for name in ("train", "dev")}
    for name, numbers in (("train", range(30)), ("dev", range(30, 36))):
        listed = "".join(f"{folder / 'sounds' / str(number)}.wav\n" for number in numbers)
        (tmp_path / f"{name}.txt").write_text(listed, encoding="utf-8")
    values = {
        "name": "ears",
        "data": files | {"source": "source", "target": "target", "target_tokens": "tokens", "max_tokens": 60,
                         "language": "de"},
        "distillation": {"model": str(folder / "model"), "train": "train.txt", "dev": "dev.txt", "dtype": "int8"},
        "cached_drafter": {"verifier": str(folder / "model"), "block_size": 3, "hidden_layers": [2]},
        "training": {"max_steps": 3, "tokens_per_batch": 64, "precision": "fp32"},
        "evaluation": {"dev_lines": 4, "max_new_tokens": 20},
    }  # fmt: skip
    done = train(parse_recipe(values), tmp_path / "run", tmp_path)
    assert done.finished and done.summary["train_lines"] <= 30 and done.summary["dev"]["lines"] == 4
    assert all(tiny_sound.IDS["<|de|>"] in one["prompt"] for one in records(tmp_path / "run/distilled/train.jsonl"))
    with pytest.raises(UsageError, match="language is 'Klingon'; allowed: de, en, fr"):
        data = values["data"] | {"language": "Klingon", "train": str(tmp_path / "run/distilled/train.jsonl"),
                                 "dev": str(tmp_path / "run/distilled/dev.jsonl")}  # fmt: skip
        without = {name: part for name, part in values.items() if name != "distillation"}
        train(parse_recipe(without | {"data": data}), tmp_path / "third", tmp_path)
    paper = {"verifier": str(folder / "model"), "width": 16, "heads": 2, "feed_forward": 16, "block_size": 3}
    del values["cached_drafter"]
    with pytest.raises(UsageError, match="paper_drafter reads texts"):
        train(parse_recipe(values | {"paper_drafter": paper}), tmp_path / "other", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"language": "Klingon"}, "language is 'Klingon'; allowed: de, en, fr"),
        ({"task": "sing"}, "task is 'sing'; allowed: transcribe, translate"),
        ({"prefix": "hear: "}, "prefix is 'hear: '; it does nothing for a model that hears"),
        ({"dev_lines": 40}, "usable lines; needed: more than 80"),
    ],
)
def test_wrong_settings_are_one_clear_error(folder, tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        make_drafter(folder / "model", folder / "short.txt", tmp_path / "drafter", **({"language": "en"} | change))
    assert not (tmp_path / "drafter").exists()


@pytest.mark.parametrize("setting", [{"language": "en"}, {"task": "translate"}, {"timestamps": False}])
def test_settings_of_sounds_are_nothing_to_a_model_that_reads(verifier, texts, tmp_path, setting):
    (tmp_path / "sources.txt").write_text("\n".join(texts[:20]), encoding="utf-8")
    with pytest.raises(UsageError, match=f"{next(iter(setting))} is .* does nothing for a model that reads"):
        make_drafter(verifier, tmp_path / "sources.txt", tmp_path / "drafter", **setting)


def test_what_is_no_sound_is_named(folder, model, tmp_path):
    (tmp_path / "list.txt").write_text("absent.wav\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"absent\.wav: no such file"):
        distill(model, tmp_path / "list.txt", tmp_path / "out.jsonl", DataConfig("", "", language="en"))
    (tmp_path / "list.txt").write_text("list.txt\n", encoding="utf-8")
    with pytest.raises(Spec2SeqError, match=r"list\.txt: no audio that can be read"):
        distill(model, tmp_path / "list.txt", tmp_path / "out.jsonl", DataConfig("", "", language="en"))
    assert not list(tmp_path.glob("*.parts"))
    for fields, message in (
        ({}, "record 1 lacks frame, prompt or tokens; needed: what distill wrote"),
        ({"frame": 0, "prompt": (5,)}, "its prompt begins with 5, not with the decoder's start"),
        ({"frame": 0, "prompt": (tiny_sound.START, 10**6)}, "record 1 has the token id 1000000"),
        ({"frame": 0, "prompt": (tiny_sound.START,)}, "record 1: a: no such file"),
    ):
        with pytest.raises(UsageError, match=message):
            learnable(model, [Pair("a", "b", tokens=(1, 2), **fields)], DataConfig("", ""), Path("train.jsonl"))
    late = Pair(str(folder / "sounds/0.wav"), "b", tokens=(1, 2), frame=10**6, prompt=(tiny_sound.START,))
    with pytest.raises(Spec2SeqError, match=r"0\.wav: a window begins at frame 1000000; the sound has"):
        list(spectrograms(model, [late]))


def test_sounds_that_cannot_be_distilled_are_named_before_anything_is_done(folder, model, tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, dtype=np.float32), tiny_sound.RATE)
    whole = DataConfig("", "", language="en", timestamps=False, min_words=3)  # words are of texts
    for name, message in (("empty.wav", "there are no samples"), (f"{folder}/sounds/41.wav", "the model hears 1")):
        (tmp_path / "list.txt").write_text(f"{folder}/sounds/0.wav\r\n{name}\r\n", encoding="utf-8", newline="")
        with pytest.raises(Spec2SeqError, match=message):
            distill(model, tmp_path / "list.txt", tmp_path / "out.jsonl", whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.wav", "list.txt"]
    (tmp_path / "list.txt").write_text(f"{folder}/sounds/0.wav\r\n", encoding="utf-8", newline="")
    assert distill(model, tmp_path / "list.txt", tmp_path / "out.jsonl", whole).lines == 1


def test_a_chunk_of_sounds_has_hours_not_days(monkeypatch, model, folder, tmp_path):
    monkeypatch.setattr("spec2seq.training.distill.SECONDS", 2.5)
    lines = []
    data = DataConfig("", "", language="en")
    distill(model, folder / "sounds.txt", tmp_path / "out.jsonl", data, report=lines.append, chunk_lines=8)
    assert len(lines) > 43 / 8 + 3
