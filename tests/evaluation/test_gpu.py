"""What `make gpu-bench` measures, with tiny shapes on a CPU: the numbers mean nothing, what they are of does."""

import dataclasses
import itertools
import json
import shutil

import pytest
import tiny
import torch
from evaluation.tiny_folder import models, pairs
from transformers import BartConfig

from spec2seq import Greedy, Seq2Seq, SpecDec
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.evaluation import costs, gpu, memory
from spec2seq.evaluation.gpu_page import page
from spec2seq.evaluation.random_models import random_drafter, random_model

SIZES = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
         "encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 90,
         "max_position_embeddings": 512}  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny pair with a block drafter beside it."""
    place = tmp_path_factory.mktemp("gpu") / "ende"
    shutil.copytree(models(), place)
    tiny.cached_drafter(Seq2Seq.from_pretrained(place), block_size=4).model.save_pretrained(place / "drafter")
    return place


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(gpu, "LARGE", SIZES)
    monkeypatch.setattr(gpu, "BASE", gpu.BASE | SIZES | {"pad_token_id": 89, "decoder_start_token_id": 89})
    for name, value in {"SHORTLIST": 40, "BATCH": 4, "INPUT": 9, "OUTPUT": 6, "SENTENCE": 5, "REPLAYS": 2,
                        "ITERATIONS": 2, "LINES": 4, "BATCH_SIZES": (1, 2)}.items():  # fmt: skip
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu, "committed_sample", lambda: pairs(8))
    monkeypatch.setattr(costs, "ARRAY", 1 << 20)
    monkeypatch.setattr(memory, "fresh_peaks", lambda engine, work, job, sizes: {
        size: 100.0 + size + 10 * (job.method == "specdec") for size in sizes})  # fmt: skip


@pytest.fixture
def large() -> Seq2Seq:
    return random_model(BartConfig(**SIZES), torch.float64, CPU)


def test_everything_is_measured_and_written(folder, tmp_path, capsys):
    gpu.main(["--device", "cpu", "--models", str(folder), "--out", str(tmp_path), "--rounds", "1"])
    assert capsys.readouterr().out.split() == [str(tmp_path / "results.json"), str(tmp_path / "report.md")]
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    written = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert written == page(found) and str(tmp_path) not in json.dumps(found)
    assert found["manifest"]["cpu"] in written or found["manifest"]["gpu"] in written
    assert [row["k"] for row in found["pass"]] == [0, 3, 6]
    for row in found["pass"]:
        assert row["ms"] > 0 and row["ratio"] == pytest.approx(row["ms"] / row["floor_ms"])
    bytes_ = [row["bytes"] for row in found["pass"]]
    assert bytes_ == sorted(bytes_) and len(set(bytes_)) == 3
    graphs, eager = (row for row in found["launches"] if row["k"] == 3)
    assert graphs["graphs"] and not eager["graphs"] and eager["operators"] > 50
    assert found["sentence"]["passes"] == 3 or found["sentence"]["tokens_per_call"] != 2
    assert found["batch"]["tokens_per_second"] == pytest.approx(24 / found["batch"]["ms"] * 1000)
    cases = {(row["dtype"], row["method"], row["batch_size"]) for row in found["equality"]}
    assert cases == set(itertools.product(("float32", "bfloat16"), ("greedy", "specdec"), (1, 2)))
    for row in found["equality"]:
        assert row["dtype"] != "float32" or row["bugs"] == 0
        assert row["method"] != "specdec" or row["stats"]["drafted"]
    assert "| 32 | 132 | 142 | 10 | 2028 | 2298 | 270 |" in written


def test_a_part_that_fails_is_made_by_the_next_call(folder, tmp_path, capsys, monkeypatch):
    asked: list[str] = []
    given = ["--device", "cpu", "--models", str(folder), "--out", str(tmp_path), "--rounds", "1"]

    def made(broken: str):
        """Parts that only say their names; `pass` is a table without rows."""

        def part(name: str):
            asked.append(name)
            if name == broken:
                raise RuntimeError("out of luck")
            return []

        return lambda *_: {name: lambda name=name: part(name) for name in ("pass", "equality", "memory")}

    monkeypatch.setattr(gpu, "parts", made("equality"))
    with pytest.raises(Spec2SeqError, match="^equality: not measured") as error:
        gpu.main(given)
    assert error.value.exit_code == 1 and capsys.readouterr().err == "equality: RuntimeError: out of luck\n"
    assert asked == ["pass", "equality", "memory"]
    written = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "## An iteration" in written and "## The same tokens" not in written and "## Peak memory" in written
    monkeypatch.setattr(gpu, "parts", made("none"))
    gpu.main(given)
    assert asked[3:] == ["equality"]
    assert "## The same tokens" in (tmp_path / "report.md").read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="of another GPU or number of rounds"):
        gpu.main([*given[:-1], "2"])


def test_texts_have_the_length_that_is_asked_for(large):
    sources = gpu._sources(large, 3, 7)
    assert {len(source) for source in sources} == {7}
    large.model.architecture = dataclasses.replace(  # what it would write is no end here
        large.model.architecture, eos_token_id=large.generate(sources, max_new_tokens=8).sequences[0][4]
    )
    for method in (Greedy(), SpecDec(random_drafter(large, 6, 40), 3)):
        seconds, stats = gpu.fixed_length(large, method, sources, 11)
        assert seconds > 0 and stats.new_tokens == 33 and stats.rows == 3


def test_random_drafters_draft_and_are_hardly_ever_right(large):
    drafter = random_drafter(large, 6, 40)
    _, stats = gpu.fixed_length(large, SpecDec(drafter, 6), gpu._sources(large, 2, 5), 20)
    assert stats.drafted > 20 and stats.acceptance < 0.3


def test_the_floor_is_of_what_a_pass_reads(large):
    """Every weight of the decoder's layers and the head once, but those that only a new source needs."""
    rate = 1e9
    (row, *_) = gpu.large_pass(large, random_drafter(large, 6, 40), rate)
    layers, inner = large.model.decoder.layers, 32
    weights = sum(p.numel() for layer in layers for name, p in layer.named_parameters() if "key_value" not in name)
    caches = 2 * 2 * inner * (64 + 64)
    assert row["bytes"] == 8 * (weights + 90 * inner + caches)
    assert row["floor_ms"] == pytest.approx(1000 * row["bytes"] / rate)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_there_is_one_error(tmp_path):
    with pytest.raises(UsageError, match="device is 'cuda', but no CUDA device is here"):
        gpu.main(["--out", str(tmp_path)])
    with pytest.raises(UsageError, match="rounds is 0"):
        gpu.main(["--rounds", "0"])
    assert not any(tmp_path.iterdir())
