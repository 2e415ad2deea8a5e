"""spec2seq prepare and average: options arrive, counts are said."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def pair(tmp_path):
    (tmp_path / "a.en").write_text("The ca@@ che is full .\nThe ca@@ che is full .\none\n")
    (tmp_path / "a.de").write_text("Der Spei@@ cher ist voll .\nDer Spei@@ cher ist voll .\neins\n")
    return [tmp_path / "a.en", tmp_path / "a.de", "--out", tmp_path / "x.tsv"]


def test_prepare_says_what_it_kept(run, pair, tmp_path):
    options = ["--remove-bpe", "--detokenize", "en,de", "--dedupe", "--min-words", "2"]
    result = run("prepare", *pair, *options)
    assert (tmp_path / "x.tsv").read_text() == "The cache is full.\tDer Speicher ist voll.\n"
    assert result.stdout == f"{tmp_path / 'x.tsv'}: kept 1; dropped: empty 0, words 1, ratio 0, duplicate 1\n"
    counts = json.loads(run("prepare", *pair, "--json").stdout)
    assert counts == {"kept": 3, "empty": 0, "words": 0, "ratio": 0, "duplicate": 0}


def test_prepare_refuses_what_it_cannot_do(fails, pair, tmp_path):
    fails(2, ["--detokenize is 'en'", "allowed: two language codes"], "prepare", *pair, "--detokenize", "en")
    fails(2, ["max_ratio is 0.5", "allowed"], "prepare", *pair, "--max-ratio", "0.5")
    (tmp_path / "a.de").write_text("eins\n")
    fails(1, ["a.en has 3 lines", "a.de has 1"], "prepare", *pair)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.de", "a.en"]


def test_average_writes_a_folder(run, fails, tmp_path):
    for name, value in (("a", 1.0), ("b", 4.0)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((2,), value)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    folders = [tmp_path / "a", tmp_path / "b", "--out", tmp_path / "mean"]
    fails(2, ["--dtype is 'int8'", "allowed: float32"], "average", *folders, "--dtype", "int8")
    result = run("average", *folders, "--dtype", "float16")
    assert result.stdout == f"{tmp_path / 'mean'}: mean of 2 folders, 1 tensors\n"
    weight = load_file(tmp_path / "mean/model.safetensors")["w"]
    assert weight.dtype == torch.float16 and weight.tolist() == [2.5, 2.5]
    fails(2, ["exists already"], "average", *folders)
