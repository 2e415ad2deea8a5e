"""The study of BiLD: on tiny models, and the committed one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from evaluation.tiny_folder import pairs

from spec2seq import Seq2Seq
from spec2seq.evaluation import bild
from spec2seq.evaluation.bild_page import blocks
from spec2seq.evaluation.document import as_html, as_markdown

COMMITTED = Path(__file__).parents[2] / "docs" / "results"


def tiny_study(work):
    theirs = tiny.seq2seq("marian")
    model = Seq2Seq(theirs.model, theirs.config, tiny.tokenizer(theirs), theirs.generation_config)
    little = {mode: tiny.noisy_copy(tiny.seq2seq("marian"), noise).drafter(range(50))
              for mode, noise in (("unaligned", 0.1), ("aligned", 0.01))}  # fmt: skip
    return bild.Study(model, little, pairs(5), pairs(6), pairs(4), work, (0.1, 0.5), (1.0, 5.0), (1, 2), 6)


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    asked = tiny_study(tmp_path_factory.mktemp("work"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bild, "CAPS", (1, 4, None))
        found = bild.study(asked)
    found["data"]["name"] = "tiny"
    return json.loads(json.dumps(found))


def test_every_point_is_measured_on_dev_and_the_chosen_ones_on_test(studied):
    for mode in ("unaligned", "aligned"):
        found = studied["dev"][mode]
        assert [*found["scores"]] == [row["method"] for row in found["rows"]
                                      if row["method"] == "vanilla" or bild._median(row) > 1]  # fmt: skip
        assert [row["method"] for row in studied["dev"][mode]["rows"]] == [
            "vanilla", *(f"{pair}{tail}" for tail in ("", " tail") for pair in (
                "fallback=0.1 rollback=1", "fallback=0.1 rollback=5", "fallback=0.5 rollback=1",
                "fallback=0.5 rollback=5")),
        ]  # fmt: skip
    chosen = [
        f"{mode}, {goal}{note}"
        for mode, goals in studied["chosen"].items() for goal, setting in goals.items() if setting
        for note in ("", ", measured cap")
    ]  # fmt: skip
    for size in ("1", "2"):
        assert [row["method"] for row in studied["test"][size]] == ["vanilla", *chosen]
    names = [row["method"] for row in studied["ablations"]["rows"]]
    tail = "tail not verified" if studied["ablations"]["setting"][2] else "tail verified"
    assert names == ["vanilla", "both", "no rollback", "no fallback", tail, "no shortlist", "cap 1", "cap 4",
                     "cap measured"]  # fmt: skip
    by_name = {row["method"]: row for row in studied["ablations"]["rows"]}
    assert by_name["no rollback"]["stats"]["rollback_percentage"] == 0
    assert by_name["no fallback"]["stats"]["fallback_percentage"] == 0


def test_goals_that_chose_one_setting_share_what_was_measured(tmp_path):
    one, other = ("aligned", (0.5, 1.0, False), 10), ("aligned", (0.5, 5.0, False), 10)
    rows = bild.on_test(tiny_study(tmp_path), {"a": one, "b": other, "c": one}, 1, lambda: None)
    assert [row["method"] for row in rows] == ["vanilla", "a", "b", "c"]
    assert rows[3] == rows[1] | {"method": "c"} and rows[2]["speedup"] != rows[1]["speedup"]


def test_no_ablation_is_measured_twice():
    made = bild.ablated(tiny_study(None).little["aligned"], (0.5, 2.0, False))
    assert len({(id(one.drafter), repr(replace(one, drafter=None))) for one in made.values()}) == len(made)


def row(method, score, speedup):
    """`speedup` is the chunks' median; that of all seconds is another method's."""
    return {"method": method, "score": score, "speedup": 3.0 - speedup, "speedup_of_chunks": {"median": speedup}}


def test_the_fastest_near_vanilla_is_chosen():
    rows = [
        row("vanilla", 20.0, 1.0),
        row("a", 19.5, 1.5),
        row("b", 19.95, 1.2),
        row("c", 20.1, 1.1),
        row("d", 20, 0.9),
    ]
    scores = {"vanilla": 21.0, "a": 20.5, "b": 20.95, "c": 21.1}  # on other lines
    assert bild.choose(rows, scores, 0.1) == "b" and bild.choose(rows, scores, 1.0) == "a"
    assert bild.choose(rows, scores | {"b": 20.5}, 0.1) == "c"
    assert bild.choose(rows, {"vanilla": 21.0}, 1.0) is None
    assert bild.choose([rows[0], rows[-1]], {"vanilla": 20.0, "d": 20.0}, 1.0) is None


def test_the_page_has_every_table(studied):
    manifest = {"command": "the command", "dtype": "int8", "threads": 1, "versions": {}, "cpu": "c", "cores": 2}
    text = as_markdown(blocks(studied | {"manifest": manifest}))
    assert "### Batch size 2" in text and "| cap 4 |" in text and "`the command`" in text
    assert "aligned, no drop: " in text


@pytest.mark.parametrize("path", sorted(COMMITTED.glob("bild*.json")), ids=lambda path: path.stem)
def test_a_committed_page_is_made_of_its_json(path):
    made = blocks(json.loads(path.read_text(encoding="utf-8")))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == as_markdown(made)
    assert as_html("BiLD", made).count("<svg") == 1
