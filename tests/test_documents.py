"""Long input in pieces: where it is cut, that nothing is lost, and that outputs come together as sources did."""

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from spec2seq import Beam, Lookup, Seq2Seq, UsageError
from spec2seq.documents import join, pieces, sentences


def texts(text: str) -> list[str]:
    return [piece.text for piece in sentences(text)]


def together(parts) -> str:
    return "".join(part.between + part.text for part in parts)


@pytest.fixture(scope="module")
def model() -> Seq2Seq:
    """96 positions; one token a word, and the end token."""
    model = tiny.seq2seq("bart")
    return Seq2Seq(model.model, model.config, tiny.tokenizer(model), model.generation_config)


@pytest.mark.parametrize(("text", "expected"), [
    ("It is full. Read on! Why? Because…", ["It is full.", "Read on!", "Why?", "Because…"]),
    ('He said "No." Then he left.', ['He said "No."', "Then he left."]),
    ("(It ends.) «So.» Done", ["(It ends.)", "«So.»", "Done"]),
    ("Version 3.14 of a.out is there, e.g. here.", ["Version 3.14 of a.out is there, e.g. here."]),
    ("Dr. Who and J. R. Smith met. They spoke.", ["Dr. Who and J. R. Smith met.", "They spoke."]),
    ("Das ist z.B. Wien. Ähnlich ist Graz.", ["Das ist z.B. Wien.", "Ähnlich ist Graz."]),
    ("Wait... what? 3 came. ¿Qué? Sí.", ["Wait... what?", "3 came.", "¿Qué?", "Sí."]),
    ("今天很好。你呢？「好！」他说", ["今天很好。", "你呢？", "「好！」", "他说"]),
    ("one line\nanother. One\r\n\r\nlast", ["one line", "another.", "One", "last"]),
    ("", []), (" \n ", []), ("no end", ["no end"]),
])  # fmt: skip
def test_sentences(text, expected):
    assert texts(text) == expected
    assert together(sentences(text)) == text.strip()


@given(st.text(alphabet='aA .!?"\n\r 。z)', max_size=60))
def test_nothing_is_lost(text):
    parts = sentences(text)
    assert together(parts) == text.strip() and all(part.text == part.text.strip() != "" for part in parts)
    assert not any("\n" in part.text for part in parts)


@given(st.lists(st.sampled_from(["w5", "w6.", "W7", "w8!\n", " ", "W9. "]), max_size=40), st.integers(8, 20))
def test_pieces_fit_and_windows_are_full(words, window):
    model = model_of_the_fixture()
    text = " ".join(words)
    for unit in ("sentences", "windows"):
        parts = pieces(text, model, unit, window)
        assert together(parts) == text.strip()
        assert all(len(model.encode_text(part.text)) <= window for part in parts)
    for one, other in zip(parts, parts[1:], strict=False):  # two windows that could be one are one
        joined = one.text + other.between + other.text
        assert "\n" in other.between or len(model.encode_text(joined)) > window or len(parts) > len(sentences(text))


def model_of_the_fixture() -> Seq2Seq:
    model = tiny.seq2seq("bart")
    return Seq2Seq(model.model, model.config, tiny.tokenizer(model), model.generation_config)


def test_windows_take_as_many_sentences_as_fit(model):
    text = "W5 w6. W7. W8 w9 w10.  W11."
    assert [part.text for part in pieces(text, model, "windows", 8)] == [text]
    long = text + " " + text.replace(".", "!")
    assert [part.text for part in pieces(long, model, "windows", 8)] == [text, text.replace(".", "!")]
    assert [part.text for part in pieces(long, model)] == texts(long)
    over = " ".join(f"w{word}" for word in range(5, 25))
    parts = pieces(over, model, window=8)
    assert together(parts) == over and [len(part.text.split()) for part in parts] == [6, 5, 4, 5]
    assert together(pieces("w" * 300, model, window=8)) == "w" * 300  # one unknown word, one token: it fits
    with pytest.raises(UsageError, match="unit is 'pages'; allowed: sentences, windows"):
        pieces(text, model, "pages")
    with pytest.raises(UsageError, match="window is 97; allowed: from 8 to 96"):
        pieces(text, model, window=97)
    prefixed = model.for_task(prefix="w3 w4 w5 w6 w7 w8 ")
    with pytest.raises(UsageError, match="window is 8 tokens, the model's prefix takes 7; allowed: at least 9"):
        pieces(text, prefixed, window=8)
    assert len(pieces("w11 w12", prefixed, window=9)) == 1


def test_a_joined_row_is_the_sum_of_its_pieces(model):
    parts = sentences("w5 w6.  W7\n\nw9 w10 w11")
    rows = model.generate([part.text for part in parts], Lookup(3), max_new_tokens=8, trace=True).rows
    row = join(parts, rows)
    assert row.text == f"{rows[0].text}  {rows[1].text}\n\n{rows[2].text}"
    assert row.tokens == [token for one in rows for token in one.tokens] and len(row.trace) == len(row.tokens)
    assert row.counts.new_tokens == len(row.tokens)
    assert row.counts.verifier_calls == sum(one.counts.verifier_calls for one in rows)
    several = model.generate(["w5", "w6"], Beam(3, num_return_sequences=2), max_new_tokens=4).rows
    with pytest.raises(UsageError, match="a document in pieces has no n-best list"):
        join(parts[:2], several)
