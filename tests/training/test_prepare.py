"""Two aligned files as one TSV: joins, filters, counts, order over processes, and nothing half-written."""

import gzip
from pathlib import Path

import pytest

from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.training import prepare as preparing
from spec2seq.training.data import Pair, read_pairs
from spec2seq.training.prepare import Preparation, prepare, remove_bpe
from spec2seq.training.recipe import DataConfig

PLAIN = DataConfig("", "")


def files(folder: Path, source: list[str], target: list[str]) -> tuple[Path, Path]:
    for name, lines in (("a.en", source), ("a.de", target)):
        (folder / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder / "a.en", folder / "a.de"


def test_bpe_marks_are_joined_at_the_end_of_a_line_too() -> None:
    assert remove_bpe("The ca@@ che is fu@@ ll") == "The cache is full"
    assert remove_bpe("cut o@@ ff@@") == "cut off"
    assert remove_bpe("me@host a @-@ b") == "me@host a @-@ b"


def test_pairs_are_what_training_reads(tmp_path: Path) -> None:
    source, target = files(
        tmp_path,
        ["A sig@@ nal ends it , doesn &apos;t it ?", "tab\there", "line\u2028break", "x"],
        ["Ein Sig@@ nal been@@ det es@@", "Ta@@ b", "Zeile um", "y"],
    )
    how = Preparation(PLAIN, remove_bpe=True, detokenize=("en", "de"))
    counts = prepare(source, target, tmp_path / "x.tsv", how)
    assert counts == {"kept": 4, "empty": 0, "words": 0, "ratio": 0, "duplicate": 0}
    assert list(read_pairs(tmp_path / "x.tsv", PLAIN)) == [
        Pair("A signal ends it, doesn't it?", "Ein Signal beendet es"), Pair("tab here", "Tab"),
        Pair("line break", "Zeile um"), Pair("x", "y"),
    ]  # fmt: skip


def test_without_options_only_tabs_and_edges_change(tmp_path: Path) -> None:
    source, target = files(tmp_path, [" a@@ b  c\td "], ["e &amp; f"])
    prepare(source, target, tmp_path / "x.tsv", Preparation(PLAIN))
    assert (tmp_path / "x.tsv").read_text() == "a@@ b  c d\te &amp; f\n"


def test_each_dropped_pair_has_its_reason(tmp_path: Path) -> None:
    source = ["one two", "", "one", "one two three four", "one two", "one two", "one two", "one two"]
    target = ["eins zwei", "b", "eins", "x", "x" * 40, "eins zwei", "  ", "zwei eins"]
    paths = files(tmp_path, source, target)
    strict = DataConfig("", "", min_words=2, max_words=3, max_ratio=2.0)
    counts = prepare(*paths, tmp_path / "x.tsv", Preparation(strict))
    assert counts == {"kept": 2, "empty": 2, "words": 2, "ratio": 1, "duplicate": 1}
    assert (tmp_path / "x.tsv").read_text() == "one two\teins zwei\none two\tzwei eins\n"
    keeps = DataConfig("", "", min_words=2, max_words=3, max_ratio=2.0, dedupe=False)
    assert prepare(*paths, tmp_path / "x.tsv", Preparation(keeps))["kept"] == 3


def test_processes_and_compression_change_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(preparing, "CHUNK", 7)
    lines = [f"line {number % 90}" for number in range(200)]
    source, target = files(tmp_path, lines, lines[::-1])
    with gzip.open(tmp_path / "a.en.gz", "wb") as file:
        file.write(source.read_bytes())
    one = prepare(source, target, tmp_path / "one.tsv", Preparation(PLAIN))
    two = prepare(tmp_path / "a.en.gz", target, tmp_path / "two.tsv.gz", Preparation(PLAIN), workers=2)
    assert one == two and one["duplicate"] > 0
    assert gzip.decompress((tmp_path / "two.tsv.gz").read_bytes()) == (tmp_path / "one.tsv").read_bytes()


def test_files_of_different_lengths_are_refused_with_both_counts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(preparing, "CHUNK", 2)
    source, target = files(tmp_path, ["a"] * 3, ["b"] * 6)
    with pytest.raises(Spec2SeqError, match=r"a.en has 3 lines, .*a.de has 6"):
        prepare(source, target, tmp_path / "x.tsv", Preparation(PLAIN))
    with pytest.raises(Spec2SeqError, match=r"a.de has 6 lines, .*a.en has 3"):
        prepare(target, source, tmp_path / "x.tsv.gz", Preparation(PLAIN))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.de", "a.en"]


def test_an_interruption_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(preparing, "CHUNK", 1)
    source, target = files(tmp_path, ["a", "b"], ["c", "d"])
    (tmp_path / "x.tsv").write_text("old")
    seen = []

    def interrupted(pair, data):
        seen.append(pair)
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(preparing, "misfit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, target, tmp_path / "x.tsv", Preparation(PLAIN))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.de", "a.en", "x.tsv"]
    assert (tmp_path / "x.tsv").read_text() == "old"


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    source, target = files(tmp_path, ["a"], ["b"])
    with pytest.raises(UsageError, match=r"--out .*x.csv: unknown kind of file; allowed: .tsv, .tsv.gz"):
        prepare(source, target, tmp_path / "x.csv", Preparation(PLAIN))
    with pytest.raises(UsageError, match="absent: no such file"):
        prepare(source, tmp_path / "absent", tmp_path / "new/x.tsv", Preparation(PLAIN))
    (tmp_path / "a.gz").write_text("no gzip")
    with pytest.raises(Spec2SeqError, match="a.gz: not readable as gzip"):
        prepare(tmp_path / "a.gz", target, tmp_path / "x.tsv", Preparation(PLAIN))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"a\n" * 1000)[:20])
    with pytest.raises(Spec2SeqError, match="cut.gz: not readable as gzip"):
        prepare(tmp_path / "cut.gz", target, tmp_path / "x.tsv", Preparation(PLAIN))
    source.write_bytes(b"\xff\n")
    with pytest.raises(Spec2SeqError, match="a.en: line 1, byte 1"):
        prepare(source, target, tmp_path / "x.tsv", Preparation(PLAIN))
    assert not (tmp_path / "x.tsv").exists() and not (tmp_path / "new").exists()
