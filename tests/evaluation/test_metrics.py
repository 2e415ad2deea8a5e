import sys

import pytest

from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.evaluation import manifest, sample
from spec2seq.evaluation.metrics import first_difference, quality, share_identical


def test_quality_has_scores_and_signatures():
    lines = ["Das ist ein kleiner Test mit Wörtern .", "Und noch einer , der etwas länger ist ."]
    same = quality(lines, lines)
    assert same.bleu == pytest.approx(100) and same.chrf == pytest.approx(100)
    assert "tok:13a" in same.bleu_signature and "version:" in same.chrf_signature
    other = quality(["Etwas ganz anderes .", "Nichts davon ."], lines)
    assert other.bleu < 10 and other.chrf < 50
    with pytest.raises(ValueError):
        quality(lines, lines[:1])


def test_missing_sacrebleu_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(Spec2SeqError, match=r"sacrebleu.*spec2seq\[eval\]"):
        quality(["a"], ["a"])


def test_identity_is_by_token_ids():
    assert share_identical([[1, 2], [3]], [[1, 2], [4]]) == 0.5
    assert share_identical([], []) == 1.0
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2


def test_fingerprint_is_of_the_weights_alone(tmp_path):
    assert manifest.fingerprint(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = manifest.fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    assert manifest.fingerprint(tmp_path) == first and len(first) == 64
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    assert manifest.fingerprint(tmp_path) != first


def test_manifest_says_what_is_needed_to_repeat_and_no_path_of_this_machine(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    made = manifest.manifest("spec2seq demo", {"verifier": tmp_path}, "float32", 2, {"sampling": 1})
    assert {"torch", "transformers", "python", "spec2seq"} <= made["versions"].keys()
    assert made["threads"] == 2 and made["dtype"] == "float32" and made["seeds"] == {"sampling": 1}
    assert made["cpu"] and made["cores"] and made["weights"]["verifier"]
    assert str(tmp_path) not in str(made)


def test_committed_sample_is_200_lines_of_debian_documents_of_all_lengths():
    pairs = sample.committed_sample()
    assert len(pairs) == 200 == len({pair.source for pair in pairs})
    assert {pair.origin for pair in pairs} == {"html-debian-reference", "html-developers-reference", "po-devscripts"}
    lengths = [len(pair.source.split()) for pair in pairs]
    assert min(lengths) == 8 and 40 <= max(lengths) <= 60


def test_stratified_takes_one_line_of_each_length_stratum_in_the_order_of_the_file():
    pairs = [sample.Pair(" ".join(["w"] * (1 + (7 * index) % 20)), str(index)) for index in range(40)]
    chosen = sample.stratified(pairs, 5)
    lengths = sorted(len(pair.source.split()) for pair in chosen)
    assert lengths == [3, 7, 11, 15, 19]
    places = [int(pair.reference) for pair in chosen]
    assert places == sorted(places) and chosen == sample.stratified(pairs, 5)
    assert sample.stratified(pairs, 100) == pairs
    with pytest.raises(UsageError, match="lines is 0"):
        sample.stratified(pairs, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no lines"), (b"a\tb\nonly a source\n", ":2: expected source TAB"), (b"\xff\xfe\t\xff", "not UTF-8"),
     (b"\tb\n", ":1: expected")],
)  # fmt: skip
def test_a_file_that_is_not_pairs_is_named(tmp_path, content, message):
    path = tmp_path / "lines.tsv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        sample.read_pairs(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        sample.read_pairs(tmp_path / "none.tsv")
    with pytest.raises(UsageError, match="cannot be read"):
        sample.read_pairs(tmp_path)


def test_pairs_to_measure_prefers_the_file_then_the_variable_then_the_sample(tmp_path, monkeypatch):
    (tmp_path / "ende.test.tsv").write_text("one\teins\n", encoding="utf-8")
    (tmp_path / "own.tsv").write_text("two\tzwei\n", encoding="utf-8")
    monkeypatch.delenv("SPEC2SEQ_DATA", raising=False)
    assert len(sample.pairs_to_measure()[0]) == 200
    monkeypatch.setenv("SPEC2SEQ_DATA", str(tmp_path))
    assert sample.pairs_to_measure() == ([sample.Pair("one", "eins")], "ende.test.tsv")
    assert sample.pairs_to_measure(tmp_path / "own.tsv") == ([sample.Pair("two", "zwei")], "own.tsv")
