import copy
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from evaluation.tiny_folder import MAX_NEW_TOKENS, models, pairs

from spec2seq import Seq2Seq
from spec2seq.errors import Spec2SeqError
from spec2seq.evaluation import compare as comparing
from spec2seq.evaluation.compare import CT2_GREEDY, GREEDY, HF_GREEDY, Contender, compare
from spec2seq.evaluation.peers import Workload, load_peer
from spec2seq.evaluation.peers.worker import Server, Worker
from spec2seq.evaluation.tables import BEGIN, END, markdown_page, readme_table, replace_between_markers

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "docs" / "results" / "compare.json"
LINES = 4
ASSISTED = Contender("spec2seq", "assisted", {"num_assistant_tokens": 3})
BROKEN = Contender("ctranslate2", "greedy", dtype="nonsense")
CONTENDERS = (
    GREEDY, Contender("spec2seq", "greedy", again=True), ASSISTED, Contender("spec2seq", "bild"), HF_GREEDY,
    Contender("hf", "assisted", {"num_assistant_tokens": 3, "assistant_confidence_threshold": 0.0}), CT2_GREEDY, BROKEN,
)  # fmt: skip


class Local:
    """A worker in this process: what goes over the pipe, without the start of one more Python."""

    def __init__(self, engine, workload, environment=None):
        self.server = Server()
        self.ask("load", engine=engine, workload=vars(workload) | {"models": str(workload.models)})

    def ask(self, do, **arguments):
        answer = self.server.answer(json.loads(json.dumps({"do": do, **arguments})))
        if "error" in answer:
            raise Spec2SeqError(answer["error"])
        return json.loads(json.dumps(answer["value"]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture(scope="module")
def results():
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "Worker", Local)
        patch.setattr(comparing, "SETTLE", 0.0)
        patch.setattr(comparing, "PROFILED", (GREEDY, ASSISTED))
        made = compare(models(), pairs(LINES), "lines.tsv", 2, 1, CONTENDERS, command="the command")
    torch.set_num_threads(before)
    return json.loads(json.dumps(made))


def workload(dtype="float32", folder=None):
    ours = Seq2Seq.from_pretrained(models())
    sources = [ours.encode_text(pair.source) for pair in pairs(LINES)]
    return Workload(folder or models(), sources, MAX_NEW_TOKENS, 1, dtype)


def test_every_contender_has_a_row_and_a_broken_peer_says_so(results):
    rows = results["rows"]
    assert len(rows) == len(CONTENDERS)
    assert "nonsense" in rows[-1]["unavailable"]
    for row in rows[:-1]:
        assert row["new_tokens"] > LINES and row["ms_per_token"] > 0 and row["latency_p50_ms"] > 0
        assert row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]
        assert row["tokens_per_second"] == pytest.approx(1000 / row["ms_per_token"])
        assert all(row[f"speedup_vs_{name}"]["median"] > 0 for name in ("greedy", "hf", "ctranslate2"))
    assert rows[0]["speedup_vs_greedy"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert str(models()) not in json.dumps(results)


def test_lossless_methods_and_all_engines_write_our_greedy_tokens_up_to_ties(results):
    rows = {(row["engine"], row["method"], row["again"]): row for row in results["rows"][:-1]}
    assert rows["spec2seq", "greedy", True]["identical_to_our_greedy"] == 1.0
    assert rows["spec2seq", "assisted", False]["identical_to_our_greedy"] == 1.0
    assert rows["hf", "assisted", False]["identical_to_greedy"] == 1.0
    assert [(peer["engine"], peer["lines"]) for peer in results["agreement"]] == [("hf", LINES), ("ctranslate2", LINES)]
    for peer in results["agreement"]:
        assert peer["identical"] + len(peer["differences"]) == LINES
        assert all(difference["logit_gap"] < 1e-3 for difference in peer["differences"])


def test_calls_of_the_verifier_are_counted_in_every_engine(results):
    rows = {(row["engine"], row["method"]): row for row in results["rows"][:-1]}
    assert all(
        rows[engine, "greedy"]["tokens_per_verifier_call"] == 1.0 for engine in ("spec2seq", "hf", "ctranslate2")
    )
    assert rows["spec2seq", "assisted"]["tokens_per_verifier_call"] > 1.0
    assert rows["hf", "assisted"]["tokens_per_verifier_call"] > 1.0


def test_where_the_time_goes_adds_up(results):
    for phases in results["phases_ms_per_token"]:
        named = [phases[name] for name in ("encode", "draft", "verify", "judge", "rest")]
        assert sum(named) == pytest.approx(phases["all"]) and phases["verify"] > 0
    assert set(results["pass_costs"]["verifier_ms"]) == {"1", "2", "3", "5", "9", "17"}


def test_ctranslate2_starts_from_the_learned_padding_embedding(tmp_path):
    # The converter that comes with CTranslate2 starts Marian models from zeros; ours has a trained row there.
    folder = tmp_path / "ende"
    shutil.copytree(models(), folder)
    peer = load_peer("ctranslate2", workload(folder=folder))
    ours = load_peer("spec2seq", workload(folder=folder))
    assert peer.run("greedy", {}).sequences == ours.run("greedy", {}).sequences


def test_gap_is_the_lead_of_the_next_token_over_the_second():
    ours = load_peer("spec2seq", workload())
    tokens = ours.run("greedy", {}).sequences[0]
    gaps = [ours.gap(0, tokens[:place]) for place in range(len(tokens))]
    assert min(gaps) >= 0 and max(gaps) > 1e-3


def test_a_worker_is_a_process_that_answers_and_says_what_is_wrong():
    with Worker("spec2seq", workload()) as worker:
        answer = worker.ask("run", method="greedy", parameters={})
        assert answer["sequences"] == load_peer("spec2seq", workload()).run("greedy", {}).sequences
        assert len(worker.ask("time", method="lookup", parameters={})) == LINES
        with pytest.raises(Spec2SeqError, match="method is 'no'"):
            worker.ask("time", method="no", parameters={})
        with pytest.raises(Spec2SeqError, match="request is 'dance'"):
            worker.ask("dance")
        worker.process.kill()
        with pytest.raises(Spec2SeqError, match="'spec2seq' ended with exit code"):
            worker.ask("costs")
    assert worker.process.poll() is not None


def test_missing_ctranslate2_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(Spec2SeqError, match=r"ctranslate2.*spec2seq\[bench\]"):
        load_peer("ctranslate2", Workload(models(), [], 1))


def test_tables_are_made_from_the_json_alone(results):
    page, short = markdown_page(results), readme_table(results)
    assert page == markdown_page(copy.deepcopy(results)) and short == readme_table(copy.deepcopy(results))
    assert "not measured: " in page and "`the command`" in page and "num_assistant_tokens 3" in page
    assert "greedy, again" in page and "greedy, again" not in short
    for table in re.findall(r"(?:^\|.*\|\n?)+", page, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.strip().splitlines()}) == 1


def test_readme_is_written_between_its_markers(results, tmp_path):
    (tmp_path / "compare.json").write_text(json.dumps(results), encoding="utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    comparing.main(["--readme", str(readme), "--out", str(tmp_path)])
    assert readme.read_text(encoding="utf-8") == f"before\n{BEGIN}\n{readme_table(results)}\n{END}\nafter\n"
    comparing.main(["--readme", str(readme), "--out", str(tmp_path)])
    assert readme.read_text(encoding="utf-8").count("\nold\n") == 0


@pytest.mark.parametrize("text", ["no markers", f"{END} {BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_missing_markers_are_named(text):
    with pytest.raises(Spec2SeqError, match="compare:begin"):
        replace_between_markers(text, "table")


def test_committed_readme_and_page_agree_with_the_committed_json():
    if not COMMITTED.is_file():
        pytest.skip("docs/results/compare.json is not committed yet: no measurement was made")
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
    assert COMMITTED.with_suffix(".md").read_text(encoding="utf-8") == markdown_page(committed)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert replace_between_markers(readme, readme_table(committed)) == readme, (
        "README and docs/results/compare.json disagree; run python -m spec2seq.evaluation.compare --readme README.md"
    )
