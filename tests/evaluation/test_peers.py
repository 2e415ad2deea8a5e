import json
import os
import shutil
import sys
import time
from dataclasses import replace

import pytest
from evaluation.local import Local
from evaluation.tiny_folder import MAX_NEW_TOKENS, models, pairs

from spec2seq import Seq2Seq
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.evaluation import costs
from spec2seq.evaluation.bench.engines import make_workload
from spec2seq.evaluation.bench.recipe import Models, Recipe
from spec2seq.evaluation.memory import fresh_peaks
from spec2seq.evaluation.peers import Job, Workload, batches, ct2, load_peer, worker
from spec2seq.evaluation.peers.worker import Worker

LINES = 4


@pytest.fixture(scope="module", autouse=True)
def here():
    """Convert in this process: no start of one more Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ct2, "_convert_apart", ct2.convert)
        yield


def workload(dtype="float32", folder=None):
    ours = Seq2Seq.from_pretrained(models())
    sources = [ours.encode_text(pair.source) for pair in pairs(LINES)]
    return Workload(folder or models(), sources, MAX_NEW_TOKENS, 1, dtype)


@pytest.fixture(scope="module")
def ours():
    return load_peer("spec2seq", workload())


def test_ctranslate2_starts_from_the_learned_padding_embedding(tmp_path, ours):
    # The converter that comes with CTranslate2 starts Marian models from zeros; ours has a trained row there.
    folder = tmp_path / "ende"
    shutil.copytree(models(), folder)
    peer = load_peer("ctranslate2", workload(folder=folder))
    assert peer.run(Job("greedy")).sequences == ours.run(Job("greedy")).sequences


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_batches_give_what_lines_alone_give_in_every_engine(method, ours):
    for peer in (ours, load_peer("hf", workload()), load_peer("ctranslate2", workload())):
        alone, batch = peer.run(Job(method)), peer.run(Job(method, batch_size=3, lines=[3, 0, 1, 2]))
        assert [alone.sequences[line] for line in (3, 0, 1, 2)] == batch.sequences
        assert len(alone.line_seconds) == LINES and batch.line_seconds == []
        assert max(map(len, peer.run(Job(method, max_new_tokens=1)).sequences)) == 1


def test_beam_search_is_that_of_transformers(ours):
    assert load_peer("hf", workload()).run(Job("beam")).sequences == ours.run(Job("beam")).sequences


def with_settings(place, settings):
    """A copy of the models whose generation config has these settings as well, and its workload."""
    shutil.copytree(models(), place)
    path = place / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings), encoding="utf-8")
    return make_workload(Models(str(place)), [pair.source for pair in pairs(8)], Recipe(threads=1), "lines.tsv")[0]


def test_beam_search_of_a_generation_config_is_nobody_s(tmp_path):
    given = with_settings(tmp_path / "m", {"num_beams": 2, "length_penalty": 2.0, "early_stopping": True,
                                           "no_repeat_ngram_size": 2})  # fmt: skip
    found, theirs = (load_peer(name, given).run(Job("beam")).sequences for name in ("spec2seq", "hf"))
    assert found == theirs != load_peer("spec2seq", replace(given, models=models())).run(Job("beam")).sequences


@pytest.mark.parametrize("settings", [
    {"no_repeat_ngram_size": 2, "min_length": 7, "forced_eos_token_id": 0},
    {"repetition_penalty": 1.5, "min_new_tokens": 6, "bad_words_ids": [[5], [272, 101], [0]]},
    {"forced_bos_token_id": 17, "suppress_tokens": [101, 380], "eos_token_id": [0, 272]},
], ids=lambda settings: "-".join(settings))  # fmt: skip
def test_ctranslate2_does_what_a_generation_config_asks_for(settings, tmp_path):
    given = with_settings(tmp_path / "m", settings)
    plain = load_peer("ctranslate2", replace(given, models=models(), settings={})).run(Job("greedy")).sequences
    made, theirs = (load_peer(name, given).run(Job("greedy")).sequences for name in ("spec2seq", "ctranslate2"))
    assert made == theirs != plain


@pytest.mark.parametrize("settings, method", [
    ({"begin_suppress_tokens": [5]}, "greedy"),
    ({"renormalize_logits": True}, "beam"),
    ({"repetition_penalty": 2.0, "decoder_start_token_id": 0, "eos_token_id": 0}, "greedy"),
    ({"forced_eos_token_id": [0, 1]}, "greedy"),
])  # fmt: skip
def test_what_ctranslate2_has_no_option_for_is_named(settings, method):
    name = next(iter(settings))
    with pytest.raises(UsageError, match=f"generation setting {name}=.* has no counterpart in CTranslate2"):
        ct2.options_of(settings, [], method)


def test_models_may_lie_elsewhere_and_sources_may_begin_with_a_prefix(tmp_path):
    (tmp_path / "alone").mkdir()
    for path in models().iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path / "alone")
    texts, recipe = [pair.source for pair in pairs(2)], Recipe(prefix="w5 w6 ")
    named = Models(str(tmp_path / "alone"), little=str(models() / "little"))
    made, tokenizer = make_workload(named, texts, recipe, "lines.tsv")
    assert made.little == models() / "little" and made.drafter is None
    assert [*made.folders()] == ["verifier", "little"]
    assert made.sources == [tokenizer(f"w5 w6 {text}").input_ids for text in texts]
    peer = load_peer("spec2seq", replace(made, max_new_tokens=MAX_NEW_TOKENS))
    assert peer.run(Job("assisted")).sequences == peer.run(Job("greedy")).sequences


@pytest.mark.parametrize("name", ["no-such/model", "/no/such/folder"])
def test_a_little_model_that_is_nowhere(name):
    with pytest.raises(Spec2SeqError, match=f"{name}: neither a model folder nor an id that could be loaded"):
        make_workload(Models(str(models()), little=name), ["w5"], Recipe(), "lines.tsv")


def test_a_folder_without_a_little_model_is_refused_by_name(tmp_path):
    with pytest.raises(Spec2SeqError, match=f"{tmp_path}: no model here: config.json is missing"):
        make_workload(Models(str(models()), little=str(tmp_path)), ["w5"], Recipe(), "lines.tsv")


def test_transformers_refuses_to_speculate_in_batches():
    peer = load_peer("hf", workload())
    for method in ("assisted", "lookup"):
        assert peer.run(Job(method)).sequences == peer.run(Job("greedy")).sequences
        with pytest.raises(ValueError, match="batch_size = 1"):
            peer.run(Job(method, batch_size=2))


def test_batches_are_of_like_lengths_and_lines_alone_keep_their_order():
    sources = [[1], [1, 2, 3], [1, 2]]
    assert batches(sources, 1) == [[0], [1], [2]] and batches(sources, 2) == [[1, 2], [0]]


def test_a_little_model_that_does_not_fit_is_left_out_of_sizes_and_costs(monkeypatch):
    def refused(self):
        raise Spec2SeqError("it does not fit")

    monkeypatch.setattr(costs, "ARRAY", 1 << 20)
    monkeypatch.setattr(costs, "REPEATS", 1)
    peer = load_peer("spec2seq", workload())
    assert peer.costs([1])["little_ms"] > 0
    monkeypatch.setattr(type(peer), "drafter", property(refused))
    assert peer.costs([1])["little_ms"] is None and [*peer.sizes()] == ["verifier"]


def test_a_shortlist_adds_bytes_but_no_parameters():
    peer = load_peer("spec2seq", workload())
    before, peer.drafter = peer.sizes()["little"], peer.drafter.scoring(range(50))
    after = peer.sizes()["little"]
    assert after["parameters"] == before["parameters"] and after["weight_bytes"] > before["weight_bytes"]


def test_gap_is_the_lead_of_the_next_token_over_the_second(ours):
    tokens = ours.run(Job("greedy")).sequences[0]
    gaps = [ours.gap(0, tokens[:place]) for place in range(len(tokens))]
    assert min(gaps) >= 0 and max(gaps) > 1e-3


def test_a_worker_is_a_process_that_answers_and_says_what_is_wrong(ours):
    with Worker("spec2seq", workload()) as worker:
        assert worker.ask("run", job=vars(Job("greedy")))["sequences"] == ours.run(Job("greedy")).sequences
        assert len(worker.ask("time", job=vars(Job("lookup")))["line_seconds"]) == LINES
        assert worker.ask("peak") > 50
        with pytest.raises(Spec2SeqError, match="method is 'no'"):
            worker.ask("time", job=vars(Job("no")))
        with pytest.raises(Spec2SeqError, match="request is 'dance'"):
            worker.ask("dance")
        worker.process.kill()
        with pytest.raises(Spec2SeqError, match="'spec2seq' ended with exit code"):
            worker.ask("peak")
    assert worker.process.poll() is not None


def test_the_time_of_a_process_on_processors_is_known_and_grows():
    before = worker.processor_seconds(os.getpid())
    used = time.process_time()
    while time.process_time() - used < 0.02:
        pass
    assert worker.processor_seconds(os.getpid()) - before >= 0.02
    assert worker.processor_seconds(2**22 + 1) is None  # above the largest that Linux gives


def test_peaks_of_a_fresh_process_grow_with_the_batch_and_a_refused_one_has_none(monkeypatch):
    monkeypatch.setattr(worker, "Worker", Local)
    peaks = fresh_peaks("spec2seq", workload(), Job("greedy"), [2, 1])
    assert 50 < peaks[1] <= peaks[2]
    assert fresh_peaks("hf", workload(), Job("lookup"), [1, 2])[2] is None


def test_missing_ctranslate2_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(Spec2SeqError, match=r"ctranslate2.*spec2seq\[bench\]"):
        Local("ctranslate2", Workload(models(), [], 1))
