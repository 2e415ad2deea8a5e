"""The arithmetic of the rows, with seconds of a clock that the test turns."""

from types import SimpleNamespace

import pytest

from spec2seq.evaluation.bench.recipe import Contender, Recipe
from spec2seq.evaluation.bench.rows import Measured, Scores, Timed, latency_by_length, make_rows, percentile
from spec2seq.evaluation.bench.run import Bench, slices
from spec2seq.evaluation.bench.study import break_even, joined
from spec2seq.evaluation.timing import Timings, interleave

GREEDY, AGAIN = Contender("spec2seq", "greedy"), Contender("spec2seq", "greedy", again=True)
FAST, BEAM = Contender("spec2seq", "lookup"), Contender("spec2seq", "beam", side=True)
HF, CT2 = Contender("hf", "greedy"), Contender("ctranslate2", "greedy")
ALL = (GREEDY, AGAIN, FAST, BEAM, HF, CT2)
RECIPE = Recipe(methods=("greedy", "beam", "lookup"), dtype=("float32",), batch_sizes=(1, 8))


def clocked(costs, rounds, fewer=None):
    """Timings of callables that take so many seconds, by a clock that only they move."""
    now = [0.0]

    def work(name):
        return lambda: now.__setitem__(0, now[0] + costs[name])

    return interleave({name: work(name) for name in costs}, rounds, 0, fewer=fewer, clock=lambda: now[0])


@pytest.fixture()
def rows():
    costs = {GREEDY.name: 4.0, AGAIN.name: 4.0, FAST.name: 2.0, BEAM.name: 16.0, HF.name: 8.0}
    one = Timed(clocked(costs, 5, {BEAM.name: 2}), dict.fromkeys(costs, 20), {FAST.name: 2.5},
                {name: [[seconds / 4, 3 * seconds / 4]] * 3 for name, seconds in costs.items()})  # fmt: skip
    eight = Timed(
        clocked({GREEDY.name: 2.0, AGAIN.name: 2.0, FAST.name: 4.0, BEAM.name: 6.0}, 3), dict.fromkeys(costs, 20)
    )
    sequences = [[1, 2], [3]]
    outputs = {name: {"sequences": sequences, "verifier_calls": 3, "extra": {}} for name in costs}
    outputs[FAST.name] = {"sequences": [[1, 2], [4]], "verifier_calls": 2, "extra": {}}
    texts = {name: ["a b c d e", "f g h i j"] for name in costs if name != HF.name}
    measured = Measured(
        outputs, {name: [0] if name == HF.name else [0, 1] for name in costs} , {1: one, 8: eight},
        {GREEDY.name: {1: 100.0, 8: 200.0}}, {},
        {(CT2.name, None): "none here", (HF.name, 8): "no"},
        {(name, size): {"threads": 2 if size == 8 else 1} for name in costs for size in (1, 8)},
    )  # fmt: skip
    measured.outputs[HF.name] = {"sequences": [[1, 2]], "verifier_calls": None, "extra": {}}
    scores = Scores(("bleu", "chrf"), ["a b c d e", "f g h i j"])
    made = make_rows(RECIPE, ALL, measured, texts, scores)
    return {(row["engine"], row["method"], row["again"], row["batch_size"]): row for row in made}


def test_ratios_are_to_greedy_of_each_engine_at_the_same_batch_size(rows):
    fast = rows["spec2seq", "lookup", False, 1]
    assert fast["speedup_vs_greedy"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert fast["threads"] == 1 and rows["spec2seq", "lookup", False, 8]["threads"] == 2
    assert fast["speedup_vs_hf"]["median"] == 4.0 and fast["speedup_vs_ctranslate2"] is None
    assert rows["spec2seq", "lookup", False, 8]["speedup_vs_greedy"]["median"] == 0.5
    assert rows["spec2seq", "lookup", False, 8]["speedup_vs_hf"] is None
    assert rows["spec2seq", "greedy", True, 1]["speedup_vs_greedy"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    beam = rows["spec2seq", "beam", False, 1]
    assert beam["rounds"] == 2 and beam["speedup_vs_greedy"]["median"] == 0.25


def test_seconds_become_tokens_and_latencies(rows):
    greedy = rows["spec2seq", "greedy", False, 1]
    assert (greedy["seconds"]["median"], greedy["ms_per_token"], greedy["tokens_per_second"]) == (4.0, 200.0, 5.0)
    assert greedy["latency_p50_ms"] == 2000.0 and greedy["latency_p99_ms"] == pytest.approx(2980.0)
    assert rows["spec2seq", "greedy", False, 8]["latency_p50_ms"] is None
    assert [rows["spec2seq", "greedy", False, size]["peak_memory_mb"] for size in (1, 8)] == [100.0, 200.0]


def test_quality_does_not_depend_on_the_batch_size_and_identity_is_of_common_lines(rows):
    for size in (1, 8):
        fast = rows["spec2seq", "lookup", False, size]
        assert fast["bleu"] == pytest.approx(100.0) and fast["identical_to_greedy"] == 0.5
        assert fast["tokens_per_verifier_call"] == (2.5 if size == 1 else 1.5)  # of the timed passes where counted
        assert fast["against_beam"]["bleu"]["p_value"] == 1.0
    hf = rows["hf", "greedy", False, 1]
    assert hf["identical_to_our_greedy"] == 1.0 and hf["quality_lines"] == 1 and hf["bleu"] is None


def test_what_was_not_measured_says_why(rows):
    assert rows["hf", "greedy", False, 8]["unavailable"] == "no"
    assert {rows["ctranslate2", "greedy", False, size]["unavailable"] for size in (1, 8)} == {"none here"}


def test_fewer_rounds_are_the_first_ones_and_ratios_are_of_the_rounds_that_both_have():
    timings = clocked({"a": 1.0, "b": 2.0}, 4, {"b": 2})
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == {"a": 4, "b": 2}
    assert Timings({"a": [1.0, 1.0, 9.0], "b": [2.0, 2.0]}).speedup("a", "b").median == 2.0


def test_engines_agree_on_the_lines_that_both_decoded():
    """An engine that refuses batches has decoded the timed lines only."""
    asked = []
    process = SimpleNamespace(worker=SimpleNamespace(ask=lambda do, line, prefix: asked.append((line, prefix))))
    bench = Bench(RECIPE, [GREEDY, HF], SimpleNamespace(process=lambda c: process), [[1, 2]], {})
    outputs = {GREEDY.name: {"sequences": [[1], [2], [3, 4]]}, HF.name: {"sequences": [[2], [3, 5]]}}
    scored = {GREEDY.name: [0, 1, 2], HF.name: [1, 2]}
    (found,) = bench._agreement(Measured(outputs, scored, {}, {}, {}, {}, {}))
    assert (found["lines"], found["identical"], asked) == (2, 1, [(2, [3])])


def test_percentiles_and_bins():
    assert percentile([7.0], 99) == 7.0 and percentile([0.0, 10.0], 50) == 5.0
    found = latency_by_length([9, 1, 5], {"a": [90.0, 10.0, 50.0]})
    assert found == {
        "bins": [[1, 1, 1], [5, 5, 1], [9, 9, 1]],
        "mean_tokens": [1, 5, 9],
        "milliseconds": {"a": [10.0, 50.0, 90.0]},
    }


def test_a_pass_is_the_sum_of_its_rounds_and_ratios_are_the_rounds_own():
    timed = Timed(Timings({"a": [1.0, 3.0, 2.0, 4.0], "b": [2.0, 9.0, 2.0, 12.0]}), {}, slices=2)
    assert timed.passes("a") == [4.0, 6.0] and timed.timings.speedup("a", "b").median == 2.5


def test_slices_have_short_and_long_sources():
    lengths = [9, 1, 5, 7, 2, 8, 3, 4]
    assert slices(list(range(8)), lengths) == [[1, 6, 2, 5], [4, 7, 3, 0]]
    assert slices([3, 1], lengths) == [[1, 3]]


def test_long_sources_are_consecutive_ones_joined():
    texts = ["a b c", "d e f", "g h i", "j k l m n o p q r s t u"]
    assert joined(texts, 3, 2) == ["a b c", "d e f"]
    assert joined(texts, 6, 5) == ["a b c d e f", "d e f g h i"]
    assert joined(texts, 50, 5) == []


def test_break_even_is_where_the_ratio_is_above_one_and_the_rule_beside_it():
    fixed = Contender("spec2seq", "lookup", {"num_lookup_tokens": 4})

    def cell(name, value, speed, drafted):
        row = {"method": "lookup", "dtype": "float32", "speedup_vs_greedy": {"median": speed}, "drafted_per_call": 4.0}
        return {name: value, "rows": [row | {"parameters": fixed.parameters},
                                      row | {"parameters": {}, "drafted_per_call": drafted}]}  # fmt: skip

    cells = {"batches": [cell("batch_size", 1, 1.2, 3.0), cell("batch_size", 8, 0.9, 0.1)],
             "lengths": [cell("words", 5, 0.8, 1.0), {"words": 200}]}  # fmt: skip
    assert break_even(cells, fixed) == {
        "pays_at_batch_sizes": [1], "rule_drafts_at_batch_sizes": [1], "pays_at_words": [], "rule_drafts_at_words": [5],
    }  # fmt: skip
