"""spec2seq score: what stdout carries, and errors in one line."""

import json

import pytest


@pytest.fixture
def files(tmp_path):
    texts = {"hyp": "The cache is full.\nAsk before you upload it.\n", "ref": "The cache is full.\nAsk first.\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return ["--hyp", tmp_path / "hyp", "--ref", tmp_path / "ref"]


def test_a_line_for_each_score(run, files):
    result = run("score", *files)
    first, bleu, chrf = result.stdout.splitlines()
    assert (result.exit_code, result.stderr, first) == (0, "", "2 lines")
    assert bleu.startswith("bleu ") and "tok:13a" in bleu and chrf.startswith("chrf ") and "nc:6" in chrf


def test_json_has_everything_and_stdin_can_be_scored(run, files):
    result = run("score", "--hyp", "-", *files[2:], "--metrics", "chrf, compound-bleu", "--language", "en",
                 "--against", files[3], "--samples", "20", "--json", input="The cache is full.\nAsk.\n")  # fmt: skip
    report = json.loads(result.stdout)
    assert report["lines"] == 2 and list(report["metrics"]) == ["chrf", "compound-bleu"]
    assert report["metrics"]["chrf"]["against"] == pytest.approx(100) and report["metrics"]["chrf"]["samples"] == 20


def test_a_comparison_shows_interval_and_p(run, files):
    out = run("score", *files, "--metrics", "rouge", "--against", files[1], "--samples", "20").stdout
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    assert "+0.00, 95% from +0.00 to +0.00, p 1.000" in out


def test_errors_name_the_option(fails, files, tmp_path):
    fails(2, ["--metrics", "'meteor'", "allowed"], "score", *files, "--metrics", "meteor")
    fails(2, ["absent", "no such file"], "score", *files[:2], "--ref", tmp_path / "absent")
    fails(1, ["ref: no line begins with T-"], "score", *files, "--ref-format", "fairseq")
