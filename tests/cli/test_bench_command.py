import json
from pathlib import Path

import pytest

from spec2seq.cli import bench as command
from spec2seq.config import load_mapping
from spec2seq.evaluation.bench.recipe import Models, load_recipe

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes" / "bench").glob("*.yaml"))


@pytest.fixture
def measured(monkeypatch):
    """Instead of measuring, note what was asked for."""
    asked = []

    def note(models, pairs, file, recipe, command, say=None):
        asked.append((models, file, recipe, command))
        return {"recipe": recipe.rounds}

    monkeypatch.setattr("spec2seq.evaluation.bench.run.run_bench", note)
    monkeypatch.setattr("spec2seq.evaluation.bench.study.run_study", note)
    monkeypatch.setattr("spec2seq.evaluation.report.write_report", lambda folder: (folder / "a", folder / "b"))
    return asked


def test_flags_win_over_the_config_and_only_results_are_printed(run, measured, tmp_path, folder):
    config, data = tmp_path / "bench.yaml", tmp_path / "lines.jsonl"
    config.write_text("rounds: 3\nlines: 5\nfields: [a, b]\n")
    data.write_text(json.dumps({"a": "x", "b": "y"}) + "\n")
    out = tmp_path / "out"
    done = run("bench", "--models", folder, "--data", data, "--config", config, "--rounds", "2", "--methods",
               "greedy, lookup", "--peers", "none", "--batch-sizes", "1,4", "--out", out)  # fmt: skip
    assert done.exit_code == 0 and done.stderr == ""
    assert done.stdout.split() == [str(out / name) for name in ("results.json", "a", "b")]
    models, file, recipe, call = measured[0]
    assert (models, file, recipe.rounds, recipe.lines) == (Models(str(folder)), "lines.jsonl", 2, 5)
    assert (recipe.methods, recipe.peers, recipe.batch_sizes) == (("greedy", "lookup"), (), (1, 4))
    assert str(tmp_path) not in call and call.startswith("spec2seq bench --models tiny --data lines.jsonl")
    assert json.loads((out / "results.json").read_text()) == {"recipe": 2} and len(list(out.iterdir())) == 1


def test_the_study_has_a_file_of_its_own(run, measured, tmp_path, folder):
    done = run("bench", "--models", folder, "--study", "--out", tmp_path / "out")
    assert done.stdout.split() == [str(tmp_path / "out" / "study.json")]
    assert measured[0][3].endswith("--study")


def test_models_may_lie_anywhere(run, measured, tmp_path, folder):
    run("bench", "--models", "google-t5/t5-small", "--little", folder, "--drafter", folder, "--prefix", "summarize: ",
        "--out", tmp_path / "out")  # fmt: skip
    models, _, recipe, call = measured[0]
    assert models == Models("google-t5/t5-small", str(folder), str(folder)) and recipe.prefix == "summarize: "
    assert call == ("spec2seq bench --models google-t5/t5-small --little tiny --drafter tiny --prefix 'summarize: ' "
                    f"--out {tmp_path / 'out'}").rpartition(" --out")[0]  # fmt: skip


def test_wrong_input_is_named(fails, measured, tmp_path, folder):
    fails(2, ["--batch-sizes is '1,x'"], "bench", "--batch-sizes", "1,x")
    fails(2, ["methods is 'dance'", "greedy, beam"], "bench", "--methods", "greedy,dance")
    fails(2, ["none.tsv", "no such file"], "bench", "--data", tmp_path / "none.tsv")
    assert not measured


def test_a_report_needs_results(fails, tmp_path):
    fails(1, ["results.json", "no such file"], "report", tmp_path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_committed_recipes_are_valid(path):
    recipe = load_recipe(path, {})
    assert recipe.rounds == load_mapping(path)["rounds"]


def test_a_command_names_files_not_places():
    given = {"models": Path("models/ende"), "data": Path("/secret/test.tsv"), "batch_sizes": "1,8", "study": False}
    assert command._command(given) == "spec2seq bench --models models/ende --data test.tsv --batch-sizes 1,8"
