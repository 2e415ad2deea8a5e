"""spec2seq make-drafter's library function on a tiny model, end to end."""

import json
from pathlib import Path

import pytest

from spec2seq import BlockDrafter, Seq2Seq, Spec2SeqError, SpecDec, UsageError
from spec2seq.training import make_drafter as making
from spec2seq.training.make_drafter import describe_made, make_drafter

PREFIX = "to German: "
OPTIONS = {"prefix": PREFIX, "minutes": 0.02, "dev_lines": 6, "block_size": 3}


@pytest.fixture
def sources(texts, tmp_path) -> Path:
    path = tmp_path / "sources.txt"
    path.write_text("\n".join(texts[:80]) + "\n", encoding="utf-8")
    return path


def lines_of(path: Path) -> list[str]:
    return [json.loads(line)["source"] for line in path.read_text(encoding="utf-8").splitlines()]


def forbidden(*arguments, **settings):
    raise AssertionError("done already")


def test_one_call_makes_a_folder_that_drafts_and_a_stopped_one_goes_on(verifier, sources, texts, tmp_path, monkeypatch):
    out, measure = tmp_path / "drafter", making.measure

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        make_drafter(verifier, sources, out, **OPTIONS)
    work = tmp_path / "drafter.work"
    assert not out.exists()
    with pytest.raises(UsageError, match=r"drafter\.work: holds .* another value of lines \(None, not 70\)"):
        make_drafter(verifier, sources, out, lines=70, **OPTIONS)
    with pytest.raises(UsageError, match=r"another value of dev_lines \(6, not 5\)"):
        make_drafter(verifier, sources, out, **(OPTIONS | {"dev_lines": 5}))
    with pytest.raises(UsageError, match="another 'cached_drafter' section"):
        make_drafter(verifier, sources, out, **(OPTIONS | {"layers": 2}))
    parts = {name: lines_of(work / f"{name}.jsonl") for name in ("train", "dev", "test")}
    assert sorted(sum(parts.values(), [])) == sorted(PREFIX + text for text in texts[:80])  # each in one alone
    assert (len(parts["dev"]), len(parts["test"])) == (6, 6)

    monkeypatch.setattr(making, "measure", measure)
    monkeypatch.setattr(making, "distill", forbidden)
    monkeypatch.setattr("spec2seq.training.session.Session._fit", forbidden)
    made = make_drafter(verifier, sources, out, **OPTIONS)
    assert made.folder == out and not work.exists() and not list(tmp_path.glob(".*"))
    block, model = BlockDrafter.from_pretrained(out), Seq2Seq.from_pretrained(verifier)
    assert block.block_size == 3 and block.hidden_layers == (1, 2) and block.model.verifier == model.fingerprint()
    again = model.generate(parts["test"], SpecDec(block, 3))
    assert again.sequences == model.generate(parts["test"]).sequences
    facts, card = json.loads((out / "training_summary.json").read_text()), (out / "README.md").read_text()
    assert facts == json.loads(json.dumps(made.facts)) and 0 < facts["train_lines"] <= 68  # empty ones are left out
    assert facts["lossless"] == {"lines": 6, "equal": 6, "ties": 0}
    speedup = facts["speedup"]
    assert 0 < speedup["low"] <= speedup["median"] <= speedup["high"]
    assert (speedup["lines"], speedup["rounds"]) == (6, 5)
    assert f"{speedup['median']:.2f} times as fast" in card and f"{speedup['median']:.2f}" in describe_made(made)
    with pytest.raises(Spec2SeqError, match="drafter: exists already"):
        make_drafter(verifier, sources, out, **OPTIONS)


def test_a_drafter_that_is_not_lossless_is_not_written(verifier, sources, tmp_path, monkeypatch):
    def other(model, ids, cap, prompts):
        return [[*row[:-1], 7, 7, 7] for row in model.generate(ids, max_new_tokens=cap).sequences]

    monkeypatch.setattr(making, "greedy_outputs", other)
    with pytest.raises(Spec2SeqError, match="not lossless: line 1: position"):
        make_drafter(verifier, sources, tmp_path / "drafter", **OPTIONS)
    assert not (tmp_path / "drafter").exists()


def test_fields_of_tables_and_objects(texts, tmp_path, monkeypatch, verifier):
    made = []
    monkeypatch.setattr(making, "distill", lambda model, file, out, data, **rest: made.append(data) or stop_here())

    def stop_here():
        raise KeyboardInterrupt

    for name, field, wanted in (("a.tsv", None, "0"), ("b.jsonl.gz", None, "source"), ("c.jsonl", "text", "text")):
        (tmp_path / name).write_text("x")
        with pytest.raises(KeyboardInterrupt):
            make_drafter(verifier, tmp_path / name, tmp_path / f"out-{name}", field=field, **OPTIONS)
        assert made[-1].source == made[-1].target == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 3}, "layers is 3; allowed: from 1 to 2"),
        ({"block_size": 0}, "block_size is 0"),
        ({"minutes": 0.0}, "^minutes is 0.0"),
        ({"dev_lines": 0}, "dev_lines is 0"),
        ({"dev_lines": 40}, "80 usable lines; needed: more than 80"),
        ({"lines": 5}, "5 usable lines; needed: more than 12"),
    ],
)
def test_wrong_input_is_one_clear_error(verifier, sources, tmp_path, change, message, monkeypatch):
    if "lines" in change:  # known before anything is distilled
        monkeypatch.setattr(making, "distill", forbidden)
    with pytest.raises(UsageError, match=message):
        make_drafter(verifier, sources, tmp_path / "drafter", **(OPTIONS | change))
    assert not (tmp_path / "drafter").exists()


def test_one_of_several_processes_is_refused(verifier, sources, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="make-drafter is one process"):
        make_drafter(verifier, sources, tmp_path / "drafter", **OPTIONS)


def test_a_file_that_is_not_there(verifier, tmp_path):
    with pytest.raises(UsageError, match=r"absent\.txt: no such file"):
        make_drafter(verifier, tmp_path / "absent.txt", tmp_path / "drafter")
    assert not list(tmp_path.iterdir())
