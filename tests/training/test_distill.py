"""Distillation: the model's own output, chunk by chunk."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from spec2seq import Beam, BiLD, Greedy, Seq2Seq, UsageError
from spec2seq.training.data import read_pairs
from spec2seq.training.distill import distill
from spec2seq.training.recipe import DataConfig

DATA = DataConfig("corpus", "", max_tokens=24)


@pytest.fixture(scope="module")
def model(verifier) -> Seq2Seq:
    return Seq2Seq.from_pretrained(verifier, "float64")


@pytest.fixture
def corpus(texts, tmp_path) -> Path:
    path = tmp_path / "corpus.tsv"
    path.write_text("".join(f"{text}\treference {n}\n" for n, text in enumerate(texts[:10])), encoding="utf-8")
    return path


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def stop(line: str) -> None:
    raise KeyboardInterrupt


def test_tokens_are_those_of_generate(model, corpus, texts, tmp_path):
    done = distill(model, corpus, tmp_path / "out.jsonl", DATA, chunk_lines=4, batch_size=3)
    found = records(done.file)
    wanted = model.generate(texts[:10], max_new_tokens=24, batch_size=1).rows
    assert [record["source"] for record in found] == texts[:10]
    assert [record["tokens"] for record in found] == [row.tokens for row in wanted]
    assert [record["target"] for record in found] == [row.text for row in wanted]
    assert [record["reference"] for record in found] == [f"reference {n}" for n in range(10)]
    assert (done.lines, done.tokens) == (10, sum(len(row.tokens) for row in wanted))


def test_a_call_that_was_stopped_goes_on_and_gives_the_same_file(model, corpus, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    distill(model, corpus, whole, DATA, chunk_lines=4)
    with pytest.raises(KeyboardInterrupt):
        distill(model, corpus, out, DATA, chunk_lines=4, report=stop)
    assert not out.exists() and [path.name for path in (tmp_path / "out.jsonl.parts").glob("*.jsonl")] == [
        "000000.jsonl"
    ]
    asked = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda rows, *a, **k: asked.append(len(rows)) or generate(rows, *a, **k))
    assert distill(model, corpus, out, DATA, chunk_lines=4).lines == 6
    assert asked == [4, 2]
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.parts"))


def test_a_call_out_of_time_ends_after_a_chunk(model, corpus, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    distill(model, corpus, whole, DATA, chunk_lines=4)
    files = [distill(model, corpus, out, DATA, chunk_lines=4, max_seconds=0.0).file for _ in range(3)]
    assert files == [None, None, out] and out.read_bytes() == whole.read_bytes()


def test_a_name_that_ends_in_gz_is_gzipped(model, corpus, tmp_path):
    done = distill(model, corpus, tmp_path / "out.jsonl.gz", DATA)
    again = read_pairs(done.file, DataConfig("", "", source="source", target="target", target_tokens="tokens"))
    assert [len(pair.tokens) > 0 for pair in again] == [True] * 10


@pytest.mark.parametrize("change", [{"method": Beam(2)}, {"lines": 5}, {"max_new_tokens": 7}, {"data": "other"}])
def test_chunks_of_another_run_are_refused(model, corpus, tmp_path, change):
    out = tmp_path / "out.jsonl"
    settings = {"method": Greedy(), "chunk_lines": 4}
    with pytest.raises(KeyboardInterrupt):
        distill(model, corpus, out, DATA, report=stop, **settings)
    data = DataConfig("corpus", "", max_tokens=24, min_words=2) if change.pop("data", None) else DATA
    with pytest.raises(UsageError, match="holds chunks of another model, corpus or method"):
        distill(model, corpus, out, data, **(settings | change))


def test_another_drafter_is_another_run(model, corpus, tmp_path):
    def call(noise, **more):
        drafter = tiny.noisy_copy(model, noise).drafter()
        distill(model, corpus, tmp_path / "out.jsonl", DATA, BiLD(drafter, rollback_threshold=None), **more)

    with pytest.raises(KeyboardInterrupt):
        call(0.1, report=stop)
    with pytest.raises(UsageError, match="holds chunks of another model, corpus or method"):
        call(3.0)
    call(0.1)


def test_lines_of_text_each_once_and_spread(model, texts, tmp_path):
    path, out = tmp_path / "corpus.txt", tmp_path / "out.jsonl"
    path.write_text("\n".join([texts[0], *texts[:9], "", texts[4]]) + "\n", encoding="utf-8")
    distill(model, path, out, DATA)
    assert [record["source"] for record in records(out)] == texts[:9]
    assert {record["reference"] for record in records(out)} == {""}
    distill(model, path, out, DATA, lines=3)
    assert [record["source"] for record in records(out)] == [texts[0], texts[3], texts[6]]


def test_sources_that_do_not_fit_are_left_out(model, texts, tmp_path):
    path, out = tmp_path / "corpus.txt", tmp_path / "out.jsonl"
    path.write_text("w5 " * 24 + "\n" + "w5 " * 23 + "\n", encoding="utf-8")  # and the end token
    assert distill(model, path, out, DATA).lines == 1
    path.write_text("\n \n", encoding="utf-8")
    with pytest.raises(UsageError, match="none of its lines passes the filters"):
        distill(model, path, out, DATA)
    path.write_text("w5\n", encoding="utf-8")
    with pytest.raises(UsageError, match="none of its lines passes the filters"):
        distill(model, path, tmp_path / "other.jsonl", DataConfig("corpus", "", min_words=2))


def test_the_models_positions_bound_what_is_distilled(model, tmp_path):
    path, out, said = tmp_path / "corpus.txt", tmp_path / "out.jsonl", []
    positions = model.model.architecture.max_positions
    path.write_text("w5 " * positions + "\nw5\n", encoding="utf-8")
    data = DataConfig("corpus", "", max_tokens=positions + 100)
    assert distill(model, path, out, data, report=said.append).lines == 1
    assert said[-1] == f"1 sources were left out: they have more than {positions} tokens"
    assert distill(model, path, out, replace(data, truncate=True)).lines == 2
    assert all(len(record["tokens"]) <= positions for record in records(out))


def test_words_of_a_prefix_do_not_count_and_an_empty_source_is_none(model, tmp_path):
    path, out = tmp_path / "corpus.jsonl", tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps({"source": text, "target": "x"}) + "\n" for text in ("w5", "", "w6 w7")))
    data = DataConfig("", "", source="source", target="target", prefix="w8 w9 ", min_words=0, max_words=1)
    distill(model, path, out, data)
    assert [record["source"] for record in records(out)] == ["w8 w9 w5"]


def test_sources_that_do_not_fit_are_cut_if_so_asked(model, texts, tmp_path):
    path, out = tmp_path / "corpus.txt", tmp_path / "out.jsonl"
    path.write_text(" ".join(texts[:6]) + "\n", encoding="utf-8")
    distill(model, path, out, DataConfig("corpus", "", max_tokens=9, truncate=True), max_new_tokens=6)
    (record,) = records(out)
    ids = model.encode_text(record["source"])
    assert len(ids) > 9
    assert record["tokens"] == model.generate([[*ids[:8], ids[-1]]], max_new_tokens=6).sequences[0]
