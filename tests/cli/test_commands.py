"""train and demo are thin: what they are told arrives in the library."""

from pathlib import Path

import pytest

from spec2seq import Spec2SeqError, training
from spec2seq.evaluation import demo
from spec2seq.training import TrainResult


def test_train_passes_everything_on(run, monkeypatch, tmp_path):
    seen = []

    def train(recipe, out, data_dir, max_minutes, report):
        seen.append((recipe, out, data_dir, max_minutes))
        report("step 1")
        return TrainResult(Path("runs/x/final"), True, 10, 20, 1.5)

    monkeypatch.setattr(training, "load_recipe", lambda path: f"recipe of {path}")
    monkeypatch.setattr(training, "train", train)
    result = run("train", "r.yaml", "--out", tmp_path, "--data", "data", "--max-minutes", "2.5")
    assert seen == [("recipe of r.yaml", tmp_path, Path("data"), 2.5)]
    assert result.stdout.startswith("runs/x/final: step 10") and result.stderr == "step 1\n"
    run("train", "r.yaml", "--out", tmp_path)
    assert seen[1][2:] == (None, None)


def test_demo_passes_everything_on(run, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(demo, "run_demo", lambda *arguments: seen.append(arguments))
    monkeypatch.setattr("spec2seq.cli.decode.bundled_model", lambda: "models/ende")
    assert run("demo", "--out", tmp_path, "--threads", 2).exit_code == 0
    assert seen == [(Path("models/ende"), None, tmp_path, 2)]


@pytest.mark.parametrize("error", [Spec2SeqError("x: broken"), OSError(28, "No space left on device")])
def test_a_failure_at_run_time_is_one_line(run, monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(demo, "run_demo", fail)
    monkeypatch.setattr("spec2seq.cli.decode.bundled_model", lambda: "models/ende")
    result = run("demo")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
