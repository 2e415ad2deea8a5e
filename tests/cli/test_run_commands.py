"""spec2seq calibrate, evaluate and sweep."""

import json

import pytest
from cli.folder import LINES

from spec2seq import Seq2Seq
from spec2seq.training import distill as distilling


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    records = [{"translation": {"de": line, "en": line.upper()}} for line in LINES[:5]]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def common(data, folder):
    return ("--task", "wmt14-de-en", "--data", data, "--model", folder)


def test_evaluate_prints_original_reproduction_ours(run, common, folder, tmp_path):
    out = tmp_path / "out"
    command = ("evaluate", *common, "--drafter", folder / "little", "--mode", "aligned", "--preset", "one-point",
               "--max-samples", 3, "--chunk-lines", 2, "--out", out)  # fmt: skip
    result = run(*command)
    head, _, vanilla, aligned = result.stdout.splitlines()
    assert head.startswith("|  | original | reproduction | ours |")
    assert vanilla.startswith("| vanilla | – | – | ") and aligned.startswith(
        "| aligned | 30.33, 1.70× | 30.54, 1.65× |"
    )
    found = json.loads((out / "results.json").read_text())
    assert [row["method"] for row in found["rows"]] == ["vanilla", "aligned"] and found["about"]["lines"] == 3
    assert len((out / "predictions" / "aligned.jsonl").read_text().splitlines()) == 3
    again = run(*command)
    assert again.stdout == result.stdout and again.stderr == ""


def test_outputs_are_limited_by_their_sources(run, fails, common, folder, tmp_path):
    out = tmp_path / "out"
    limits = ("--max-len-a", 0.5, "--max-len-b", 2)
    run("evaluate", *common, *limits, "--prefix", "", "--out", out)
    found = json.loads((out / "results.json").read_text())
    assert (found["about"]["max_len_a"], found["about"]["max_len_b"]) == (0.5, 2)
    model = Seq2Seq.from_pretrained(folder, max_len_a=0.5, max_len_b=2)
    cap = min(127, model.model.architecture.max_positions or 127)
    rows = [json.loads(line) for line in (out / "predictions" / "vanilla.jsonl").read_text().splitlines()]
    assert [row["output"] for row in rows] == model.generate(LINES[:5], batch_size=1, max_new_tokens=cap).texts
    free = Seq2Seq.from_pretrained(folder).generate(LINES[:5], batch_size=1, max_new_tokens=cap).texts
    assert free != [row["output"] for row in rows]
    again = ("evaluate", *common, "--prefix", "", "--out", out)
    fails(2, ["max_len_a 0.5", "now it is None"], *again)  # the parts there have other limits
    fails(2, ["max_len_a is -1"], "evaluate", *common, "--max-len-a", -1, "--out", tmp_path / "other")
    fails(2, ["src_lang is 'en'", "no language tokens"], "sweep", *common, "--drafter", folder / "little", "--src-lang",
          "en", "--out", tmp_path / "other")  # fmt: skip


def test_evaluate_names_what_is_wrong(fails, common, folder, tmp_path):
    command = ("evaluate", *common, "--out", tmp_path / "out")
    little = ("--drafter", folder / "little", "--mode", "aligned")
    fails(2, ["--fallback-threshold is '2'", "from 0.0 to 1.0"], *command, *little, "--fallback", 2)
    fails(2, ["--mode is vanilla", "takes no drafter"], *command, "--drafter", folder / "little")
    fails(2, ["--preset sets"], *command, *little, "--preset", "no-drop", "--rollback", 1)
    fails(2, ["--mode is 'best'", "vanilla, unaligned, aligned"], *command, "--mode", "best")
    fails(2, ["--split is 'test'; it does nothing where --data is a file"], *command, "--split", "test")
    fails(2, ["task is 'x'", "xsum"], "evaluate", "--task", "x", "--out", tmp_path / "out")
    fails(2, ["--model is not set", "none is published"], "evaluate", "--task", "wmt16-en-ro", "--out", tmp_path / "o")
    fails(2, ["policy lossless", "rollback"], *command, *little, "--policy", "lossless", "--rollback", 1)


def test_sweep_writes_its_pages(run, common, folder, tmp_path):
    out = tmp_path / "out"
    result = run(
        "sweep",
        *common,
        "--drafter",
        folder / "little",
        "--fallback",
        "0,none",
        "--rollback",
        2,
        "--verify-tail",
        "true",
        "--out",
        out,
    )
    assert result.stdout.splitlines() == [str(out / name) for name in ("sweep.json", "sweep.md", "frontier.html")]
    rows = json.loads((out / "sweep.json").read_text())["rows"]
    assert [row["method"] for row in rows] == [
        "vanilla",
        "fallback=0 rollback=2 tail=true",
        "fallback=none rollback=2 tail=true",
    ]
    assert rows[1]["score"] == rows[2]["score"]  # never unsure, and the policy off


def test_calibrate_goes_on(run, common, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    command = ("calibrate", *common, "--method", "greedy", "--max-new-tokens", 8)
    result = run(*command, "--out", whole)
    records = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [record["source"] for record in records] == LINES[:5]
    assert [record["reference"] for record in records] == [line.upper() for line in LINES[:5]]
    assert result.stdout.startswith(f"{whole}: 5 lines, ")
    distill = distilling.distill
    monkeypatch.setattr(distilling, "distill", lambda *a, **k: distill(*a, **k, chunk_lines=2))
    write = distilling._write_chunk
    monkeypatch.setattr(
        distilling, "_write_chunk", lambda path, *rest: stop() if "2" in path.stem else write(path, *rest)
    )
    assert run(*command, "--out", out).exit_code == 130 and not out.exists()
    monkeypatch.setattr(distilling, "_write_chunk", write)
    assert run(*command, "--out", out).stdout.startswith(f"{out}: 1 lines, ")
    assert out.read_bytes() == whole.read_bytes()


def stop():
    raise KeyboardInterrupt
