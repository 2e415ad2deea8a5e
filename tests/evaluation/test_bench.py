import contextlib
import json
import re
from types import SimpleNamespace

import pytest
import torch
from evaluation.conftest import ASSISTED, LINES, TIMED
from evaluation.tiny_folder import MAX_NEW_TOKENS, models

from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.evaluation.bench import engines
from spec2seq.evaluation.bench.engines import Engines, make_workload
from spec2seq.evaluation.bench.recipe import PEERS, Contender, Models, Recipe, contenders, load_recipe
from spec2seq.evaluation.bench.run import Bench
from spec2seq.evaluation.peers import Workload

FIELDS = {
    "engine", "method", "parameters", "batch_size", "dtype", "seconds", "ms_per_token", "latency_p50_ms",
    "latency_p95_ms", "tokens_per_second", "tokens_per_verifier_call", "identical_to_greedy", "bleu", "chrf",
    "extra_parameters", "peak_memory_mb", "speedup_vs_greedy", "speedup_vs_hf", "speedup_vs_ctranslate2",
}  # fmt: skip


def find(results, engine, method, size=1, **more):
    wanted = {"parameters": {}, "again": False, "dtype": "float32"} | more
    wanted |= {"engine": engine, "method": method, "batch_size": size}
    rows = [row for row in results["rows"] if all(row[key] == value for key, value in wanted.items())]
    assert len(rows) == 1
    return rows[0]


def test_every_contender_has_a_row_at_every_batch_size_with_every_field(results, recipe):
    rows = results["rows"]
    assert len(rows) == 2 * len(contenders(recipe))
    for row in rows:
        assert "unavailable" in row or row.keys() >= FIELDS, row
    for row in (row for row in rows if "unavailable" not in row):
        assert row["ms_per_token"] > 0 and row["tokens_per_second"] == pytest.approx(1000 / row["ms_per_token"])
        assert row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]
        assert all(row[f"speedup_vs_{name}"]["median"] > 0 for name in ("greedy", "hf", "ctranslate2"))
        assert (row["latency_p50_ms"] is None) == (row["batch_size"] > 1)
        assert row["peak_memory_mb"] == (None if row["again"] else 100.0 * row["batch_size"])
    assert (
        find(results, "spec2seq", "assisted")["extra_parameters"]
        > find(results, "spec2seq", "lookup")["extra_parameters"]
    )
    assert str(models()) not in json.dumps(results)
    assert re.fullmatch(r"this takes about \d+ minutes", results["said"][0])


def test_what_cannot_run_is_a_row_that_says_why(results):
    for size in (1, 2):
        assert "no block drafter" in find(results, "spec2seq", "specdec", size)["unavailable"]
    for method in ("assisted", "lookup"):
        assert find(results, "hf", method)["rounds"] == 1
        assert "batch_size = 1" in find(results, "hf", method, 2)["unavailable"]
        assert find(results, "hf", method)["bleu"] is None and find(results, "hf", method)["quality_lines"] == TIMED


def test_the_same_thing_under_another_name_has_its_own_seconds_and_the_same_tokens(results):
    again, greedy = find(results, "spec2seq", "greedy", again=True), find(results, "spec2seq", "greedy")
    assert greedy["speedup_vs_greedy"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert again["seconds"] != greedy["seconds"] and again["identical_to_greedy"] == 1.0
    assert again["speedup_vs_greedy"]["median"] != 1.0
    assert find(results, "spec2seq", "greedy", again=True, dtype="int8")["identical_to_greedy"] == 1.0


def test_lossless_methods_and_all_engines_write_our_greedy_tokens_up_to_ties(results):
    for parameters in ({}, ASSISTED.parameters):
        assert find(results, "spec2seq", "assisted", parameters=parameters)["identical_to_our_greedy"] == 1.0
    assert find(results, "hf", "assisted")["identical_to_greedy"] == 1.0
    float32 = [peer for peer in results["agreement"] if peer["dtype"] == "float32"]
    assert [(peer["engine"], peer["lines"]) for peer in float32] == [("hf", LINES), ("ctranslate2", LINES)]
    for peer in float32:
        assert peer["identical"] + len(peer["differences"]) == LINES
        assert all(difference["logit_gap"] < 1e-3 for difference in peer["differences"])


def test_calls_of_the_verifier_are_counted_in_every_engine(results):
    for engine in ("spec2seq", "hf", "ctranslate2"):
        assert find(results, engine, "greedy")["tokens_per_verifier_call"] == 1.0
    assert find(results, "spec2seq", "assisted", parameters=ASSISTED.parameters)["tokens_per_verifier_call"] > 1.0
    assert find(results, "hf", "assisted")["tokens_per_verifier_call"] > 1.0


def test_quality_is_compared_with_beam_search(results):
    beam, greedy = find(results, "spec2seq", "beam"), find(results, "spec2seq", "greedy")
    assert beam["against_beam"]["bleu"] == {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}
    assert greedy["against_beam"]["chrf"]["difference"] == pytest.approx(greedy["chrf"] - beam["chrf"])
    assert [signature[:6] for signature in results["data"]["signatures"]] == ["nrefs:", "nrefs:"]


def test_where_the_time_goes_adds_up_and_passes_have_a_floor(results):
    assert len(results["phases_ms_per_token"]) == 2 * 5  # all of ours that ran but beam search, in both dtypes
    for phases in results["phases_ms_per_token"]:
        named = [phases[name] for name in ("encode", "draft", "verify", "judge", "rest")]
        assert sum(named) == pytest.approx(phases["all"]) and phases["verify"] > 0
    costs = results["pass_costs"]
    assert set(costs["verifier_ms"]) == {"1", "2"} and {"1", "2", "16", "32"} <= set(costs["verifier_ms"]["1"])
    assert costs["floor_ms"] == pytest.approx(1000 * costs["weight_bytes"] / costs["bytes_per_second"])
    assert results["tensor_bytes"]["verifier"]["weight_bytes"] > costs["weight_bytes"] > 1000


def test_sentences_are_an_output_and_say_who_wrote_each_token(results):
    assert len(results["sentences"]) == LINES
    written = {token["by"] for sentence in results["sentences"] for token in sentence["tokens"]}
    assert written == {"d", "v"} and results["sentences_of"]["method"] in ("assisted", "lookup")


def test_a_bench_says_what_it_was_asked(results, recipe):
    assert results["recipe"]["rounds"] == recipe.rounds and results["recipe"]["variants"][0]["method"] == "assisted"
    assert results["manifest"]["command"] == "the command"
    assert set(results["manifest"]["weights"]) == {"verifier", "little"}
    assert results["data"]["max_new_tokens"] == MAX_NEW_TOKENS


@pytest.mark.parametrize("given, words", [
    ({"method": ["greedy"]}, "did you mean 'methods'"),
    ({"methods": ["beam"]}, "must hold 'greedy'"),
    ({"methods": ["greedy", "dance"]}, "methods is 'dance'"),
    ({"peers": ["marian"]}, "peers is 'marian'"),
    ({"dtype": ["int8"]}, "dtype begin with"),
    ({"batch_sizes": [8]}, "begins with 1"),
    ({"rounds": 0}, "rounds is 0"),
    ({"study": {"word": [5]}}, "did you mean 'words'"),
    ({"variants": [{"method": "greedy", "beta": 3}]}, "unknown key 'beta'"),
])  # fmt: skip
def test_wrong_recipes_are_named(given, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        load_recipe(None, given)


def test_an_engine_runs_the_dtypes_that_it_has():
    made = contenders(Recipe(methods=("greedy",), dtype=("float32", "bfloat16", "int8"), peers=PEERS))
    assert {c.dtype for c in made if c.engine == "hf"} == {"float32", "bfloat16"}
    for engine in ("spec2seq", "ctranslate2"):
        assert {c.dtype for c in made if c.engine == engine} == {"float32", "bfloat16", "int8"}
    assert made[0] == Contender("spec2seq", "greedy") and made[1].again
    assert len({c.name for c in made}) == len(made)


def test_the_study_has_every_length_and_batch_size(studied):
    assert [cell["words"] for cell in studied["lengths"]] == [8, 16]
    assert [cell["batch_size"] for cell in studied["batches"]] == [1, 2]
    for cell in (*studied["lengths"], *studied["batches"]):
        methods = ["greedy", "assisted", "assisted", "lookup", "lookup"]
        assert [(row["dtype"], row["method"]) for row in cell["rows"]] == [
            (dtype, method) for dtype in ("float32", "int8") for method in methods
        ]
        assert cell["rows"][0]["drafted_per_call"] == 0 and cell["rows"][1]["drafted_per_call"] > 0
        assert all(row["ms_per_token"] > 0 for row in cell["rows"])
        assert all(cell["rows"][place]["speedup_vs_greedy"]["median"] == 1.0 for place in (0, len(methods)))
    assert [row["method"] for row in studied["break_even"]] == 2 * ["assisted", "lookup"]


def workload(threads):
    return Workload(models(), [[5, 6, 2], [7, 2]], MAX_NEW_TOKENS, threads=threads)


def test_an_engine_runs_with_the_threads_that_make_it_faster_and_beam_search_with_its_own(local_workers, monkeypatch):
    greedy, beam, peer = (
        Contender(*names) for names in (("spec2seq", "lookup"), ("spec2seq", "beam"), ("hf", "greedy"))
    )
    with contextlib.ExitStack() as stack:
        made = Engines(workload(2), {})
        made.start(stack, [("spec2seq", "float32"), ("hf", "float32")])
        two, one = made.processes["spec2seq", "float32"]
        assert (two.threads, one.threads) == (2, 1)
        faster = {"greedy": one.worker, "beam": two.worker}  # of ours; all of the peer's take as long
        monkeypatch.setattr(Engines, "_seconds", lambda self, process, job: 3.0 - (process is faster[job["method"]]))
        for size in (1, 2):
            made.choose([greedy, beam, peer], size, [0, 1])
        assert made.process(greedy, 2) is one and made.process(beam, 2) is two
        assert made.process(peer) is made.processes["hf", "float32"][0]


@pytest.mark.parametrize("cpu, machine, told", [("AMD EPYC", "x86_64", True), ("Intel(R) Xeon(R)", "x86_64", False),
                                                ("Neoverse", "aarch64", False)])  # fmt: skip
def test_ctranslate2_is_also_told_to_use_mkl_where_it_would_not_by_itself(cpu, machine, told, monkeypatch):
    monkeypatch.setattr(engines, "cpu_name", lambda: cpu)
    monkeypatch.setattr(engines.platform, "machine", lambda: machine)
    mkl = [(2, engines.MKL), (1, engines.MKL)] if told else []
    assert engines.ways("ctranslate2", workload(2)) == [(2, {}), (1, {}), *mkl]
    assert engines.ways("spec2seq", workload(1)) == [(1, {})]


def test_an_engine_that_ends_in_the_quality_run_is_a_refusal():
    def ask(do, job):
        raise Spec2SeqError("ended with exit code -9")

    dead, made = Contender("hf", "greedy"), Engines(workload(1), {})
    made.processes["hf", "float32"] = [engines.Process(SimpleNamespace(ask=ask), 1, {})]
    assert made.decode([dead], [0], 16, lambda: None) == ({}, {dead.name: "ended with exit code -9"})
    refusals, bench = {}, Bench(Recipe(), [Contender("spec2seq", "greedy"), dead], made, [[0]], {})
    assert bench._decode([dead], refusals, lambda: None) == ({}, {})
    assert refusals == {(dead.name, None): "ended with exit code -9"}


def test_without_threads_all_engines_get_those_that_pytorch_takes():
    assert make_workload(Models(str(models())), ["w5"], Recipe(), "f")[0].threads == torch.get_num_threads()
    given = Recipe(device="cuda", dtype=("float32",))
    assert make_workload(Models(str(models())), ["w5"], given, "f")[0].threads is None
