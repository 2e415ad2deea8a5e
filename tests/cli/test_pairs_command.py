"""spec2seq pairs: the list, and two models without their weights."""

import json
import shutil

from cli.folder import LINES, make_folder

from spec2seq import known_pairs


def test_the_list(run):
    result = run("pairs")
    lines = result.stdout.splitlines()
    assert (result.exit_code, result.stderr, len(lines)) == (0, "", len(known_pairs.KNOWN))
    assert lines[0].split()[:2] == ["facebook/bart-large-cnn", "sshleifer/distilbart-cnn-12-3"]
    pairs = [json.loads(line) for line in run("pairs", "--json").stdout.splitlines()]
    assert pairs[0] == {
        "verifier": "facebook/bart-large-cnn", "drafter": "sshleifer/distilbart-cnn-12-3", "task": "news to summaries"
    }  # fmt: skip
    assert len({(pair["verifier"], pair["drafter"]) for pair in pairs}) == len(pairs)


def test_two_models_are_compared_without_weights(run, folder, tmp_path):
    for name in (".", "little"):
        to = tmp_path / "pair" / name
        to.mkdir(parents=True, exist_ok=True)
        for file in (folder / name).iterdir():
            if file.is_file() and file.suffix != ".safetensors":
                shutil.copy(file, to)
    pair = tmp_path / "pair"
    verifier, drafter, verdict = run("pairs", pair, pair / "little").stdout.splitlines()
    assert verifier.startswith(f"verifier: {pair}, ") and drafter.startswith(f"drafter: {pair / 'little'}, ")
    assert verdict == "one vocabulary: the drafter can draft for the verifier"
    found = json.loads(run("pairs", pair, pair / "little", "--json").stdout)
    assert found["verifier"]["decoder_layers"] >= found["drafter"]["decoder_layers"] > 0


def test_models_that_do_not_go_together(run, fails, folder, tmp_path):
    other = make_folder(tmp_path / "other", lines=[*LINES, "Nine quick foxes jump over lazy dogs."])
    fails(2, ["different vocabularies", "in the verifier and", "in the drafter"], "pairs", folder, other)
    fails(2, ["DRAFTER is missing"], "pairs", folder)
    fails(1, ["absent: no such folder"], "pairs", folder, tmp_path / "absent")
