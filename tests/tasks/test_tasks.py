"""Tasks: the hub's schema from local files and from a stand-in for the hub, and files of one's own."""

import gzip
import json
import sys
import types

import pytest

from spec2seq import Spec2SeqError, UsageError
from spec2seq.tasks import TASKS, Example, task_named
from spec2seq.training.data import read_pairs, resolve
from spec2seq.training.hub import local_name
from spec2seq.training.recipe import DataConfig

RECORDS = {
    "wmt14-de-en": {"translation": {"de": "Hallo Welt", "en": "Hello world"}},
    "wmt14-en-de": {"translation": {"de": "Hallo Welt", "en": "Hello world"}},
    "wmt16-en-ro": {"translation": {"ro": "Salut lume", "en": "Hello world"}},
    "wmt16-ro-en": {"translation": {"ro": "Salut lume", "en": "Hello world"}},
    "iwslt2017-de-en": {"translation": {"de": "Hallo Welt", "en": "Hello world"}},
    "xsum": {"document": "A long text", "summary": "Short", "id": "1"},
    "cnn_dailymail": {"article": "A long text", "highlights": "One .\nTwo .", "id": "1"},
    "java_code_api_generation": {"docstring": "reads a file", "code": "File.read"},
}
EXAMPLES = {
    "wmt14-de-en": Example("Hallo Welt", "Hello world"),
    "wmt14-en-de": Example("Hello world", "Hallo Welt"),
    "wmt16-en-ro": Example("Hello world", "Salut lume"),
    "wmt16-ro-en": Example("Salut lume", "Hello world"),
    "iwslt2017-de-en": Example("Hallo Welt", "Hello world"),
    "xsum": Example("summarize: A long text", "Short"),
    "cnn_dailymail": Example("summarize: A long text", "One .\nTwo ."),
    "java_code_api_generation": Example("description for api: reads a file", "File.read"),
}


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the package datasets; returns the calls it got. Its records are set by `hub.records`."""
    calls = []

    def load_dataset(path, config=None, *, split, revision=None):
        calls.append((path, config, split, revision))
        return module.records

    module = types.ModuleType("datasets")
    module.load_dataset, module.records, module.calls = load_dataset, [], calls
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_every_task_is_covered():
    assert set(RECORDS) == set(EXAMPLES) == set(TASKS) - {"local"}


@pytest.mark.parametrize("name", RECORDS)
def test_from_the_hub_once_and_then_from_its_copy(name, hub, tmp_path):
    task = task_named(name)
    hub.records = [RECORDS[name]] * 2
    for _ in range(2):
        assert task.examples(data=tmp_path) == [EXAMPLES[name]] * 2
    assert hub.calls == [(task.dataset, task.config, "validation", task.revision)]
    (copy,) = tmp_path.iterdir()
    assert json.loads(copy.read_text(encoding="utf-8").splitlines()[0]) == RECORDS[name]


@pytest.mark.parametrize("name", ["wmt14-de-en", "cnn_dailymail"])
def test_from_a_local_file_in_the_hubs_schema(name, tmp_path, monkeypatch):
    task = task_named(name)
    split = f"{task.dataset.replace('/', '.')}.{task.config}.test.jsonl.gz"
    with gzip.open(tmp_path / split, "wt", encoding="utf-8") as file:
        file.write(json.dumps(RECORDS[name]) + "\n")
    monkeypatch.setenv("SPEC2SEQ_DATA", str(tmp_path))
    assert task.examples("test") == [EXAMPLES[name]]
    assert task.examples(data=tmp_path / split) == [EXAMPLES[name]]


def test_pairs_without_text_are_left_out_and_the_first_so_many_are_taken(tmp_path):
    path = tmp_path / "x.jsonl"
    pairs = [("", "a"), ("b", ""), ("c", "d"), ("e", "f"), ("g", "h")]
    path.write_text("".join(json.dumps({"document": a, "summary": b}) + "\n" for a, b in pairs))
    found = task_named("xsum").examples(data=path, count=2)
    assert found == [Example("summarize: c", "d"), Example("summarize: e", "f")]


def test_a_local_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match="missing.tsv: no such file"):
        task_named("local").file(data=tmp_path / "missing.tsv")
    with pytest.raises(UsageError, match="typo.jsonl.gz: no such file"):  # and no folder of the hub's copies
        task_named("xsum").file(data=tmp_path / "typo.jsonl.gz")
    with pytest.raises(UsageError, match="give --data FILE"):
        task_named("local").file()


def test_local_files(tmp_path):
    (tmp_path / "a.tsv").write_text("x\ty\n")
    (tmp_path / "a.jsonl").write_text(json.dumps({"in": "x", "out": {"text": "y"}}) + "\n")
    (tmp_path / "a.txt").write_text("x\n")
    (tmp_path / "b.txt").write_text("y\n")
    local = task_named("local").of_fields(None, None, "p: ", None)
    named = task_named("local").of_fields("in", "out.text", "p: ", "rougeL")
    wanted = [Example("p: x", "y")]
    assert local.examples(data=tmp_path / "a.tsv") == named.examples(data=tmp_path / "a.jsonl") == wanted
    assert local.examples(data=tmp_path / "a.txt", references=tmp_path / "b.txt") == wanted
    assert named.metric == "rougeL" and local.metric == "bleu"


def test_what_is_wrong_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Spec2SeqError, match=r"pip install 'spec2seq\[hub\]'"):
        task_named("xsum").examples(data=tmp_path)
    with pytest.raises(UsageError, match="task is 'squad'; allowed: wmt14-de-en"):
        task_named("squad")
    with pytest.raises(UsageError, match="no data of its own; give --data FILE"):
        task_named("local").examples()
    (tmp_path / "a.txt").write_text("x\nz\n")
    (tmp_path / "b.txt").write_text("y\n")
    with pytest.raises(UsageError, match="has 2 lines and .* 1"):
        task_named("local").examples(data=tmp_path / "a.txt", references=tmp_path / "b.txt")
    with pytest.raises(UsageError, match="hub:DATASET:SPLIT"):
        local_name("hub:xsum")


def test_a_hub_that_fails_leaves_no_file(hub, tmp_path):
    def load_dataset(*_, **__):
        raise ConnectionError("no route\nto host")

    hub.load_dataset = load_dataset
    with pytest.raises(Spec2SeqError, match="not to be had from the hub: no route; a file .*jsonl would do"):
        resolve("hub:lilferrit/xsum_t5_distillation:train", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "record", "columns"),
    [
        ("paulh27/alignment_iwslt2017_de_en", {"translation": {"de": "x", "en": "y"}},
         {"source": "translation.de", "target": "translation.en"}),
        ("lilferrit/xsum_t5_distillation", {"document": "x", "summary": "z", "t5_large_output": "y"},
         {"source": "document", "target": "t5_large_output", "prefix": "summarize: "}),
    ],
)  # fmt: skip
def test_published_calibration_sets_as_training_reads_them(name, record, columns, hub, tmp_path):
    hub.records = [record]
    path = resolve(f"hub:{name}:train", tmp_path)
    (pair,) = read_pairs(path, DataConfig("", "", **columns))
    assert (pair.source, pair.target) == (columns.get("prefix", "") + "x", "y")
    assert hub.calls == [(name, None, "train", None)]
