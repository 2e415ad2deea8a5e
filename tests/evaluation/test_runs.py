"""Tasks measured in chunks: resumed without repeating or losing a line, scored, swept, shown."""

import json

import pytest
import tiny

from spec2seq import BiLD, Seq2Seq, UsageError
from spec2seq.evaluation import runs
from spec2seq.evaluation.published import POINTS, beside_published, nearest, point
from spec2seq.evaluation.runs import Plan, measure, results, score, sentences, write_predictions
from spec2seq.evaluation.sweeps import frontier, grid, write_sweep

CAP = 8


@pytest.fixture(scope="module")
def model() -> Seq2Seq:
    theirs = tiny.seq2seq("marian")
    return Seq2Seq(theirs.model, theirs.config, tiny.tokenizer(theirs), theirs.generation_config)


@pytest.fixture(scope="module")
def methods(model):
    little = tiny.noisy_copy(tiny.seq2seq("marian"), 0.02).drafter()
    return {"aligned": BiLD(little, 0.2), "other": BiLD(little, 0.4, 0.0)}


@pytest.fixture(scope="module")
def plan(model) -> Plan:
    sources = tiny.sources(model, 10, 5)
    references = [model.tokenizer.decode(source) for source in sources]
    return Plan(sources, references, "bleu", batch_size=2, max_new_tokens=CAP, chunk_lines=4)


def files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.json*")}


def test_a_run_that_was_killed_goes_on(model, plan, methods, tmp_path, monkeypatch):
    """Wherever it is stopped: no chunk is decoded twice, none is missing, and the outputs are those of one go."""
    whole = measure(model, plan, methods, tmp_path / "whole", {"task": "t"})
    decoded, decode = [], runs._decode
    for stop_after in (0, 1, 4, 100):

        def decode_some(model, plan, method, chunk, stop_after=stop_after):
            if chunk.stop - chunk.start > 1:  # no warm-up
                if len(decoded) >= stop_after:
                    raise KeyboardInterrupt
                decoded.append((repr(method), chunk.start))
            return decode(model, plan, method, chunk)

        monkeypatch.setattr(runs, "_decode", decode_some)
        if stop_after < 100:
            with pytest.raises(KeyboardInterrupt):
                measure(model, plan, methods, tmp_path / "out", {"task": "t"})
            torn = tmp_path / "out" / "parts" / "vanilla" / ".00001.json.x"  # what a kill while writing leaves
            torn.parent.mkdir(parents=True, exist_ok=True)
            torn.write_text('{"stats": ')
    found = measure(model, plan, methods, tmp_path / "out", {"task": "t"})
    assert len(decoded) == len(set(decoded)) == 9
    for name, outcome in whole.items():
        assert found[name].rows == outcome.rows and len(outcome.rows) == 10
        assert found[name].stats.new_tokens == outcome.stats.new_tokens == sum(len(r["tokens"]) for r in outcome.rows)
        assert found[name].stats.rows == 10 and len(found[name].seconds) == 3
    before = files(tmp_path / "out")
    measure(model, plan, methods, tmp_path / "out", {"task": "t"})  # nothing is left to do
    assert files(tmp_path / "out") == before and len(decoded) == 9


def test_vanilla_is_greedy_and_the_counts_are_generates(model, plan, methods, tmp_path):
    found = measure(model, plan, methods, tmp_path, {})
    greedy = model.generate(plan.sources, max_new_tokens=CAP).sequences
    assert [row["tokens"] for row in found["vanilla"].rows] == greedy
    done = model.generate(plan.sources, methods["aligned"], max_new_tokens=CAP)
    assert [row["tokens"] for row in found["aligned"].rows] == done.sequences
    assert found["aligned"].stats.fallbacks == done.stats.fallbacks
    rows = results(plan, found)
    assert [row["method"] for row in rows] == ["vanilla", "aligned", "other"]
    assert rows[0]["speedup"] == 1.0 and rows[1]["speedup"] > 0
    write_predictions(tmp_path, plan, found)
    records = [json.loads(line) for line in (tmp_path / "predictions" / "aligned.jsonl").read_text().splitlines()]
    assert [record["line"] for record in records] == list(range(1, 11))
    assert [record["reference"] for record in records] == plan.references


def test_parts_of_another_run_are_refused_and_points_may_be_added(model, plan, methods, tmp_path):
    measure(model, plan, {"aligned": methods["aligned"]}, tmp_path, {"task": "t"})
    assert set(measure(model, plan, methods, tmp_path, {"task": "t"})) == {"vanilla", "aligned", "other"}
    with pytest.raises(UsageError, match="holds a run with task 't', now it is 'u'; choose another folder"):
        measure(model, plan, methods, tmp_path, {"task": "u"})


def test_scores():
    scores, signature = score(["the cat sat on the mat"], ["the cat sat on the mat"], "bleu")
    assert scores["bleu"] == pytest.approx(100.0) and "tok:13a" in signature
    scores, _ = score(["One two. Three four."], ["Three four.\nOne two."], "rougeLsum")
    assert scores["rougeLsum"] == pytest.approx(100.0) and scores["rougeL"] < 60
    assert sentences('He said "no." Then? 3.5 of it.') == 'He said "no."\nThen?\n3.5 of it.'


def row(name, score, speedup):
    stats = {"fallback_percentage": 1.5, "rollback_percentage": 0.5, "tokens_per_verifier_call": 2.0, "unverified": 3}
    return {"method": name, "score": score, "speedup": speedup, "stats": stats,
            "speedup_of_chunks": {"median": speedup, "low": speedup, "high": speedup}}  # fmt: skip


def test_published_points():
    assert len(POINTS) == 16
    known = point("cnn_dailymail", "aligned", "no-drop")
    assert (known.rollback, known.fallback, known.original) == (3, 0.3, (41.52, 1.85))
    assert nearest("cnn_dailymail", "aligned", 0.3, 3.0) == known
    assert nearest("cnn_dailymail", "aligned", None, 3.0) is None
    table = beside_published([row("vanilla", 41.54, 1.0), row("aligned", 41.5, 1.9)], known)
    assert "| aligned | 41.52, 1.85× | 41.33, 1.48× | 41.50, 1.90× |" in table
    assert "| vanilla | – | – | 41.54, 1.00× |" in table
    with pytest.raises(UsageError, match="nothing is published for wmt16-en-ro, aligned"):
        point("wmt16-en-ro", "aligned", "no-drop")
    with pytest.raises(UsageError, match="preset is 'fast'; allowed: no-drop, one-point"):
        point("xsum", "aligned", "fast")


def test_a_grid_is_every_combination():
    made = grid("bild", "d", {"fallback_threshold": "0,0.5,none", "rollback_threshold": "2, 0", "tau": None})
    assert list(made)[:3] == ["fallback=0 rollback=2", "fallback=0 rollback=0", "fallback=0.5 rollback=2"]
    assert made["fallback=none rollback=0"].fallback_threshold is None and len(made) == 6
    assert made["fallback=0 rollback=0"].fallback_threshold == 0.0
    blocks = grid("specdec", "d", {"beta": "1,3", "tau": "1", "block_size": "4"})
    assert list(blocks) == ["beta=1 tau=1 block=4", "beta=3 tau=1 block=4"]
    with pytest.raises(UsageError, match="--fallback-threshold is '2'; allowed: a number from 0.0 to 1.0"):
        grid("bild", "d", {"fallback_threshold": "0.5,2"})


def test_the_frontier_and_its_page(tmp_path):
    rows = [row("vanilla", 40.0, 1.0), row("a", 40.2, 1.2), row("b", 39.0, 1.1), row("c", 39.5, 1.6)]
    assert frontier(rows) == ["a", "c"]
    paths = write_sweep(tmp_path, {"task": "iwslt2017-de-en", "metric": "bleu"}, rows)
    assert json.loads(paths[0].read_text())["frontier"] == ["a", "c"]
    assert "| c | 39.50 | 1.60× |" in paths[1].read_text()
    page = paths[2].read_text()
    assert page.count("<svg") == 1 and "4 settings, 2 on the frontier" in page
    for layer in ("measured", "frontier", "original, unaligned", "reproduction, aligned"):
        assert layer in page
    write_sweep(tmp_path, {"task": "local", "metric": "bleu"}, rows)
    assert "original" not in paths[2].read_text()
