"""Reading and filtering of pairs, and where data files are looked for."""

import gzip
import json
from pathlib import Path

import pytest

from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.models.languages import cut
from spec2seq.training.data import Pair, filter_pairs, made_by, read_pairs, resolve
from spec2seq.training.recipe import DataConfig

TSV = DataConfig(train="x.tsv", dev="x.tsv")


def test_tsv_and_jsonl_gz_give_the_same_pairs(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("a b\tc d\tman\n\ne\tf\tman\n", encoding="utf-8")
    with gzip.open(tmp_path / "x.jsonl.gz", "wt", encoding="utf-8") as lines:
        for source, target in (("a b", "c d"), ("e", "f")):
            lines.write(json.dumps({"document": source, "summary": target, "kind": "man"}) + "\n")
    jsonl = DataConfig(train="x", dev="x", source="document", target="summary", origin="kind")
    expected = [Pair("a b", "c d", "man"), Pair("e", "f", "man")]
    assert list(read_pairs(tmp_path / "x.tsv", TSV)) == expected
    assert list(read_pairs(tmp_path / "x.jsonl.gz", jsonl)) == expected


def test_fields_of_sounds_may_be_something_else_in_texts(tmp_path: Path) -> None:
    lines = [{"prompt": "Hello", "frame": "x"}, {"prompt": None, "frame": 1.5}, {"prompt": [1, "a"]}]
    text = "".join(json.dumps(line | {"question": "Hello", "answer": "Hallo"}) + "\n" for line in lines)
    (tmp_path / "x.jsonl").write_text(text, encoding="utf-8")
    config = DataConfig(train="x", dev="x", source="question", target="answer")
    assert list(read_pairs(tmp_path / "x.jsonl", config)) == [Pair("Hello", "Hallo")] * 3


def test_lines_end_as_everywhere_and_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_bytes(b"\xef\xbb\xbfa\tb\tgame\r\nc\td\x0be\tman\r\n")
    assert list(read_pairs(tmp_path / "x.tsv", TSV)) == [Pair("a", "b", "game"), Pair("c", "d\x0be", "man")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"source": "a", "target": None, "tokens": [1]}, "x.jsonl:1: field 'target' is null; allowed: a text"),
        ({"source": ["a"], "target": "b", "tokens": [1]}, r"field 'source' is \[\"a\"\]; allowed: a text"),
        ({"source": "a", "target": "b", "tokens": None}, "field 'tokens' is null; allowed: a list of token ids"),
        ({"source": "a", "target": "b", "tokens": ["c"]}, "allowed: a list of token ids"),
        ({"source": "a", "target": "b"}, "no field 'tokens'"),
        (["source"], "x.jsonl:1: not a JSON object"),
    ],
)
def test_a_value_that_is_no_text_is_refused(record, message, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        list(read_pairs(tmp_path / "x.jsonl", DataConfig("", "", source="source", target="target",
                                                         target_tokens="tokens")))  # fmt: skip


def test_columns_are_counted_from_the_left(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("a\tb\n", encoding="utf-8")
    with pytest.raises(UsageError, match="data.source is '-1'.*column numbers from 0"):
        list(read_pairs(tmp_path / "x.tsv", DataConfig("", "", source="-1")))
    with pytest.raises(UsageError, match="data.origin is 'kind'; allowed for TSV with exclude_origins"):
        list(read_pairs(tmp_path / "x.tsv", DataConfig("", "", origin="kind", exclude_origins=("game",))))


def test_filters_keep_what_the_recipe_wants() -> None:
    config = DataConfig(
        train="", dev="", min_words=2, max_words=3, max_ratio=2.0, exclude_origins=("game",), max_lines=3
    )
    good = Pair("one two", "eins zwei")
    dropped = [Pair("one", "eins"), Pair("a b c d", "a b c d"), Pair("one two", "eins zwei und noch viel mehr"),
               Pair("one two", "eins zwei", "game"), Pair("one two", ""), good]  # fmt: skip
    more = [Pair("two three", "zwei drei"), Pair("three four", "drei vier"), Pair("four five", "vier fünf")]
    assert list(filter_pairs(iter([good, *dropped, *more]), config)) == [good, *more[:2]]


def test_unreadable_data_names_file_line_and_need(tmp_path: Path) -> None:
    cases = {"x.tsv": "a\tb\nonly one\n", "x.jsonl": '{"document": "a"}\n', "y.jsonl": "no json\n", "x.csv": "a,b\n"}
    expected = {"x.tsv": "x.tsv:2", "x.jsonl": "'summary'", "y.jsonl": "y.jsonl:1", "x.csv": "allowed: .tsv"}
    for name, text in cases.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        config = TSV if name == "x.tsv" else DataConfig(train="", dev="", source="document", target="summary")
        with pytest.raises(UsageError) as caught:
            list(read_pairs(tmp_path / name, config))
        assert expected[name] in str(caught.value)
    (tmp_path / "latin.tsv").write_bytes("ä\tö\n".encode("latin-1"))
    with pytest.raises(Spec2SeqError, match=r"latin\.tsv: line 1, byte 1: 0xE4 is not UTF-8"):
        list(read_pairs(tmp_path / "latin.tsv", TSV))


def test_data_files_are_found_by_argument_and_by_environment(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "x.tsv").write_text("a\tb\n", encoding="utf-8")
    monkeypatch.delenv("SPEC2SEQ_DATA", raising=False)
    assert resolve("data/x.tsv", tmp_path) == tmp_path / "x.tsv"
    with pytest.raises(UsageError, match=r"data/x\.tsv.*not found.*--data DIR or SPEC2SEQ_DATA"):
        resolve("data/x.tsv")
    monkeypatch.setenv("SPEC2SEQ_DATA", str(tmp_path))
    assert resolve("data/x.tsv") == tmp_path / "x.tsv"


def test_a_path_is_taken_as_it_is_before_a_base_name(tmp_path: Path) -> None:
    data, other = tmp_path / "data", tmp_path / "runs" / "other"
    for folder in (data / "de", other):
        folder.mkdir(parents=True)
    for path in (data / "x.tsv", data / "de" / "x.tsv", other / "x.tsv"):
        path.write_text("a\tb\n", encoding="utf-8")
    assert resolve("de/x.tsv", data) == data / "de" / "x.tsv"
    assert resolve("en/x.tsv", data) == data / "x.tsv"
    assert resolve(str(other / "x.tsv"), data) == other / "x.tsv"
    assert resolve(made_by("other/x.tsv", tmp_path / "runs" / "mine"), data) == other / "x.tsv"
    with pytest.raises(UsageError, match="not found"):
        resolve(str(other / "de" / "x.tsv"), data)


def test_filters_do_not_see_the_prefix(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("a b\tc d\n\te f\n", encoding="utf-8")
    data = DataConfig("", "", prefix="translate English to German: ", max_words=2, max_ratio=1.0)
    assert [pair.target for pair in filter_pairs(read_pairs(tmp_path / "x.tsv", data), data)] == ["c d"]


def test_prefix_fields_within_fields_and_cut_sources(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"t": {"de": "a b c", "en": "d"}}\n{"t.de": "e", "t": {"en": "f"}}\n', encoding="utf-8")
    data = DataConfig("", "", source="t.de", target="t.en", prefix="put: ")
    assert [(pair.source, pair.target) for pair in read_pairs(path, data)] == [("put: a b c", "d"), ("put: e", "f")]
    with pytest.raises(UsageError, match="no field 'fr'; data.source is 't.fr'"):
        list(read_pairs(path, DataConfig("", "", source="t.fr", target="t.en")))
    assert cut([1, 2, 3, 4, 9], 3, 9) == [1, 2, 9] and cut([1, 9], 3, 9) == [1, 9]
