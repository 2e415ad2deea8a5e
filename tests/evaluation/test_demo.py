import json
import subprocess
import sys

import pytest
from evaluation.tiny_folder import models, pairs

from spec2seq import Seq2Seq
from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.evaluation import demo
from spec2seq.evaluation.bench.sentences import token_texts


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    path = tmp_path_factory.mktemp("sample") / "lines.tsv"
    path.write_text("".join(f"{pair.source}\t{pair.reference}\n" for pair in pairs(12)), encoding="utf-8")
    return path


def test_demo_prints_one_table_and_writes_results_and_report(local_workers, sample, tmp_path, capsys):
    out = tmp_path / "new" / "demo"
    models()
    capsys.readouterr()  # what saving the models printed
    report = demo.run_demo(models(), sample, out, threads=1, rounds=2)
    printed = capsys.readouterr()
    assert report == out / "report.html" and str(report) in printed.out.replace("\n", "")
    assert all(method in printed.out for method in ("greedy", "assisted", "BiLD", "lookup"))
    assert "%|" not in printed.err  # no bar where no terminal is
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.md", "results.json"]

    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    rows = {row["method"]: row for row in results["rows"] if not row["again"]}
    assert list(rows) == ["greedy", "assisted", "bild", "lookup"]
    assert all(rows[method]["identical_to_greedy"] == 1.0 for method in ("greedy", "assisted", "lookup"))
    assert rows["greedy"]["tokens_per_verifier_call"] == 1.0
    assert rows["greedy"]["speedup_vs_greedy"]["median"] == 1.0
    assert (results["data"]["file"], results["data"]["lines"], results["data"]["timed_lines"]) == ("lines.tsv", 12, 12)
    assert sum(count for _, _, count in results["latency"]["bins"]) == 12
    assert str(tmp_path) not in json.dumps(results)  # no path of this machine

    greedy = Seq2Seq.from_pretrained(models()).generate([s["source"] for s in results["sentences"]])
    assert len(results["sentences"]) == 10
    for sentence, text in zip(results["sentences"], greedy.texts, strict=True):
        assert "".join(token["text"] for token in sentence["tokens"]) == text


class Bytes:
    """A tokenizer whose tokens are UTF-8 bytes."""

    def decode(self, tokens):
        return bytes(tokens).decode("utf-8", errors="replace")


def test_a_character_of_several_tokens_belongs_to_the_last_of_them():
    assert token_texts(Bytes(), list("aß€".encode())) == ["a", "", "ß", "", "", "€"]
    assert token_texts(Bytes(), [0x61, 0xC3]) == ["a", "\ufffd"]
    assert token_texts(Bytes(), []) == []


def test_wrong_input_is_named_before_the_work(sample, tmp_path):
    with pytest.raises(Spec2SeqError, match="no model here"):
        demo.run_demo(tmp_path, sample, tmp_path / "out")
    with pytest.raises(UsageError, match="no such file"):
        demo.run_demo(models(), tmp_path / "none.tsv", tmp_path / "out")
    with pytest.raises(UsageError, match="threads is 0"):
        demo.run_demo(models(), sample, tmp_path / "out", threads=0)
    assert not (tmp_path / "out").exists()


def test_the_package_alone_imports_none_of_the_extras():
    code = (
        "import sys, spec2seq\n"
        "found = {'matplotlib', 'ctranslate2', 'sacrebleu', 'accelerate'} & sys.modules.keys()\n"
        "sys.exit(f'imported {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
