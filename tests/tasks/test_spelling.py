"""The correction task: the same errors each time, of about the asked rate, and the originals as they were."""

import gzip
import random

import pytest

from spec2seq import UsageError
from spec2seq.tasks.spelling import corrupt, main

TEXT = "The quick brown fox jumps over the lazy dog, 42 times. " * 40


def test_errors():
    made = corrupt(TEXT, random.Random(1), 0.1)
    assert made == corrupt(TEXT, random.Random(1), 0.1) != corrupt(TEXT, random.Random(2), 0.1)
    assert corrupt(TEXT, random.Random(1), 0.0) == TEXT
    assert "42" in made and made.count(" ") == TEXT.count(" ")
    words = list(zip(made.split(), TEXT.split(), strict=True))
    assert 0.2 < sum(a != b for a, b in words) / len(words) < 0.5


def test_files(tmp_path, capsys):
    pairs = "".join(f"line number {number} of many words\tZeile {number}\torigin\n" for number in range(20))
    with gzip.open(tmp_path / "ende.train.tsv.gz", "wt") as file:
        file.write(pairs)
    for part in ("dev", "test"):
        (tmp_path / f"ende.{part}.tsv").write_text(pairs)
    for out in ("a", "b"):
        main(["--data", str(tmp_path), "--out", str(tmp_path / out), "--rate", "0.2"])
    assert len(capsys.readouterr().out.splitlines()) == 6
    dev = (tmp_path / "a" / "spelling.dev.tsv").read_text()
    assert dev == (tmp_path / "b" / "spelling.dev.tsv").read_text()
    rows = [line.split("\t") for line in dev.splitlines()]
    assert [row[1] for row in rows] == [line.split("\t")[0] for line in pairs.splitlines()]
    assert {row[2] for row in rows} == {"origin"} and sum(row[0] != row[1] for row in rows) > 15
    with gzip.open(tmp_path / "a" / "spelling.train.tsv.gz", "rt") as file:
        assert file.read() == dev
    with pytest.raises(UsageError, match="--rate is 2.0; allowed: from 0.0 to 1.0"):
        main(["--out", str(tmp_path), "--rate", "2"])
