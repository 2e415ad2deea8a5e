"""Seq2Seq.generate and stream: what goes in, what comes out, what is refused."""

import itertools

import pytest
import tiny

from spec2seq import (
    Assisted,
    Beam,
    BiLD,
    Exact,
    FixedLength,
    Greedy,
    Lookup,
    OfficialBiLD,
    Sample,
    Seq2Seq,
    Spec2SeqError,
    Speculative,
    UsageError,
)
from spec2seq.decoding.stats import Stats

CAP = 12
TEXTS = ["w5 w6 w7", "w9", "w20 w21 w22 w23 w24 w25 w26", "w40 w41", "w8 w8 w8 w8", "w33 w5"]


def named(family: str = "marian", seed: int = 0, words: dict[int, str] | None = None) -> Seq2Seq:
    """A tiny model with a tokenizer."""
    model = tiny.seq2seq(family, seed)
    return Seq2Seq(model.model, model.config, tiny.tokenizer(model, words), model.generation_config)


@pytest.mark.parametrize("method", [Greedy(), Beam(2), Sample(seed=1)], ids=["greedy", "beam", "sample"])
def test_texts_and_ids_are_the_same(method):
    model = named()
    ids = [model.encode_text(text) for text in TEXTS]
    by_text = model.generate(TEXTS, method, max_new_tokens=CAP)
    by_ids = model.generate(ids, method, max_new_tokens=CAP)
    assert by_text.sequences == by_ids.sequences
    assert (
        by_text.texts
        == by_ids.texts
        == [model.tokenizer.decode(row, skip_special_tokens=True) for row in by_text.sequences]
    )
    assert len(set(by_text.texts)) > 3


def test_ids_alone_need_no_tokenizer():
    model = tiny.seq2seq("marian")
    done = model.generate([[5, 6, 0], [9, 0]], max_new_tokens=CAP)
    assert all(row.text is None for row in done.rows) and done.texts == ["", ""]
    assert done.sequences == named().generate([[5, 6, 0], [9, 0]], max_new_tokens=CAP).sequences
    with pytest.raises(UsageError, match="without a tokenizer; pass token ids"):
        model.generate(["w5"])


def test_no_sources():
    model = named()
    for method in (Greedy(), Beam(2), Assisted(model.drafter(), 3)):
        done = model.generate([], method)
        assert done.rows == [] and done.texts == [] and done.stats.verifier_calls == 0
    assert list(model.stream([])) == []


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9])
@pytest.mark.parametrize("method", [Greedy(), Beam(2)], ids=["greedy", "beam"])
def test_order_is_kept(method, batch_size):
    """Sources are sorted by length inside; rows come back in the order of the sources."""
    model = named()
    alone = [model.generate([text], method, max_new_tokens=CAP).texts[0] for text in TEXTS]
    assert model.generate(TEXTS, method, max_new_tokens=CAP, batch_size=batch_size).texts == alone
    assert model.generate(tuple(reversed(TEXTS)), method, max_new_tokens=CAP).texts == alone[::-1]


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("method", ["greedy", "assisted", "beam", "sample"])
def test_stream_is_generate(method, batch_size):
    """Of 34 lines at batch size 2 the last two are a second window; at batch size 1 each is one."""
    model = named()
    method = {
        "greedy": Greedy(), "assisted": Assisted(model.drafter(), 3), "beam": Beam(2), "sample": Sample(seed=4),
    }[method]  # fmt: skip
    count = 34 if batch_size == 2 else 5
    lines = [f"{TEXTS[number % len(TEXTS)]} w{number + 3}" for number in range(count)]
    stats = Stats()
    rows = list(model.stream(iter(lines), method, max_new_tokens=CAP, batch_size=batch_size, stats=stats, trace=True))
    done = model.generate(lines, method, max_new_tokens=CAP, batch_size=batch_size, trace=True)
    assert [row.tokens for row in rows] == done.sequences
    assert [(row.text, row.trace, row.counts.new_tokens) for row in rows] == [
        (row.text, row.trace, row.counts.new_tokens) for row in done.rows
    ]
    assert stats.rows == len(lines) and stats.new_tokens == done.stats.new_tokens
    assert stats.verifier_calls == done.stats.verifier_calls


def test_stream_reads_no_further_than_it_must():
    read = []

    def lines():
        for text in TEXTS:
            read.append(text)
            yield text

    rows = named().stream(lines(), max_new_tokens=CAP, batch_size=1)
    assert read == []
    next(rows)
    assert read == TEXTS[:1]
    next(rows)
    assert read == TEXTS[:2]


def test_one_string_is_refused():
    model = named()
    with pytest.raises(UsageError, match="sources is one string; pass a list of them"):
        model.generate("w5 w6")
    with pytest.raises(UsageError, match="sources is one string; pass a list of them"):
        next(model.stream("w5 w6"))


def test_an_empty_source():
    model = named()
    with pytest.raises(UsageError, match="source 2 has no tokens"):
        model.generate([[5, 0], []])
    assert len(model.generate([""], max_new_tokens=CAP).sequences[0]) >= 1  # the end token alone is a source


def test_ids_that_are_no_ids():
    model = named()
    for ids in ([5, 64, 0], [-1, 0]):
        with pytest.raises(UsageError) as error:
            model.generate([[5, 0], ids], max_new_tokens=CAP)
        assert "source 2" in str(error.value) and "0 to 63" in str(error.value)


@pytest.mark.parametrize("ids", [5, None, [5, 2.7, 0], [5, None], [5, "w6"]], ids=str)
def test_what_is_no_list_of_ids(ids):
    model = named()
    wrong = r"(is (5|None); allowed: a text, or|has the token id (2.7|None|'w6'); allowed: 0 to 63)"
    with pytest.raises(UsageError, match=f"source 2 {wrong}"):
        model.generate([[5, 0], ids])
    with pytest.raises(UsageError, match=f"source 1 {wrong}"):
        model.score([ids], [[5, 0]])
    with pytest.raises(UsageError, match=f"output 1 {wrong}"):
        model.score([[5, 0]], [ids])
    with pytest.raises(UsageError, match=f"prompt 1 {wrong}"):
        model.generate([[5, 0]], prompts=[ids])


@pytest.mark.parametrize("method", [Greedy, "greedy", Assisted], ids=["preset", "name", "drafting preset"])
def test_what_is_no_method(method):
    with pytest.raises(UsageError, match="method is .*; allowed: a method, such as Greedy"):
        named().generate(["w5"], method)
    with pytest.raises(UsageError, match="runs in no engine; use generate"):
        named().engine(method)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: Lookup(-1), "num_lookup_tokens is -1; allowed: at least 0"),
        (lambda d: Assisted(d, 0, 0.5), "num_assistant_tokens is 0; allowed: at least 1"),
        (lambda d: Assisted(d, -1), "num_assistant_tokens is -1; allowed: at least 0"),
        (lambda d: Speculative(d, 3), "length is 3; allowed: a LengthRule"),
        (lambda d: Speculative(d, Exact()), "length is Exact(); allowed: a LengthRule"),
        (lambda d: Speculative(d, acceptance=FixedLength(3)), "acceptance is FixedLength(cap=3); allowed: an Acc"),
    ],
)
def test_a_method_names_what_is_wrong_with_it(make, message):
    with pytest.raises(UsageError) as error:
        make(named().drafter())
    assert message in str(error.value)


def test_a_source_that_is_too_long():
    model = named()
    long = " ".join(f"w{number % 50 + 3}" for number in range(100))
    with pytest.raises(Spec2SeqError) as error:
        model.generate(["w5", long])
    assert str(error.value) == "source 2 has 101 tokens; the model allows 96; split or truncate it (--truncate)"
    assert error.value.exit_code == 1
    with pytest.raises(Spec2SeqError, match="source 1 has 101 tokens"):
        next(model.stream([long]))
    ids = model.encode_text(long)
    cut = [*ids[:95], ids[-1]]  # the end token is kept
    expected = model.generate([cut], max_new_tokens=CAP).sequences
    assert model.generate([long], max_new_tokens=CAP, truncate=True).sequences == expected
    assert [row.tokens for row in model.stream([long], max_new_tokens=CAP, truncate=True)] == expected
    assert model.generate([cut], max_new_tokens=CAP).sequences == expected  # 96 just fit


def test_relative_positions_allow_any_length():
    model = tiny.seq2seq("t5")
    assert model.model.architecture.max_positions is None
    done = model.generate([[*range(3, 60)] * 4 + [1]], max_new_tokens=200)
    assert 1 <= len(done.sequences[0]) <= 200
    with pytest.raises(Spec2SeqError, match="source 1 has 5001 tokens; allowed are 4096"):
        model.generate([[5] * 5000 + [1]])


def test_max_new_tokens_that_are_no_number():
    with pytest.raises(UsageError, match="max_new_tokens is 2.5; allowed: whole numbers"):
        named().generate(["w5"], max_new_tokens=2.5)


@pytest.mark.parametrize("asked", [0, -3, 97])
def test_max_new_tokens_out_of_range(asked):
    with pytest.raises(UsageError) as error:
        named().generate(["w5"], max_new_tokens=asked)
    assert str(error.value) == f"max_new_tokens is {asked}; allowed: 1 to 96, the model's positions"
    if asked < 1:
        with pytest.raises(UsageError, match="allowed: at least 1$"):
            named("t5").generate(["w5"], max_new_tokens=asked)


def test_max_new_tokens_by_default():
    from transformers import GenerationConfig

    def cap(family: str = "t5", **settings) -> int:
        model = tiny.seq2seq(family)
        return Seq2Seq(model.model, model.config, None, GenerationConfig(**settings)).max_new_tokens()

    assert cap(max_new_tokens=33) == 33
    assert cap(max_length=50) == 49  # the decoder start counts there
    assert cap(max_length=50, max_new_tokens=7) == 7
    assert cap() == 256
    assert cap("marian", max_length=512) == 96  # no more than there are positions
    assert tiny.seq2seq("t5").max_new_tokens(5) == 5


LIMITED = {
    "greedy": lambda little: Greedy(),
    "assisted": lambda little: Assisted(little.drafter(), 3),
    "bild": lambda little: BiLD(little.drafter()),
    "compat": lambda little: OfficialBiLD(little.drafter()),
    "beam": lambda little: Beam(2),
}


@pytest.mark.parametrize("method", LIMITED)
def test_an_output_is_limited_by_its_source(method):
    """As if each had been decoded alone with a cap of its own; the smaller of both caps holds."""
    model, method = named(), LIMITED[method](named(seed=1))
    limited = model.for_task(max_len_a=0.5, max_len_b=1)
    caps = [min(4, int(0.5 * len(model.encode_text(text)) + 1)) for text in TEXTS]
    alone = [model.generate([text], method, max_new_tokens=cap).sequences[0]
             for text, cap in zip(TEXTS, caps, strict=True)]  # fmt: skip
    for batch_size in (1, 4):
        assert limited.generate(TEXTS, method, max_new_tokens=4, batch_size=batch_size).sequences == alone
    assert [row.tokens for row in limited.stream(TEXTS, method, max_new_tokens=4)] == alone
    assert len(set(caps)) > 2 and any(len(row) == cap for row, cap in zip(alone, caps, strict=True))
    assert limited.for_task(prefix="w5 ").max_len_b == 1  # what was set before stays
    assert limited.for_task(max_len_b=2).max_len_a == 0.5


def test_a_limit_by_the_source_leaves_a_token():
    assert {len(row) for row in named().for_task(max_len_a=0.0).generate(TEXTS).sequences} == {1}
    for name in ("max_len_a", "max_len_b"):
        with pytest.raises(UsageError, match=f"{name} is -1"):
            named().for_task(**{name: -1})


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_out_of_range(batch_size):
    model = named()
    with pytest.raises(UsageError, match=f"batch_size is {batch_size}; allowed: at least 1"):
        model.generate(["w5"], batch_size=batch_size)
    with pytest.raises(UsageError, match="batch_size"):
        next(model.stream(itertools.repeat("w5"), batch_size=batch_size))  # before anything is read


def test_vocabularies_that_differ_name_the_first_difference():
    model, other = named(), named(seed=1, words={9: "nine", 12: "twelve"})
    with pytest.raises(UsageError) as error:
        model.generate(["w5"], Assisted(other.drafter(), 3))
    assert "token 9 is 'w9' in the verifier and 'nine' in the drafter" in str(error.value)
    assert error.value.exit_code == 2


def test_a_word_that_only_one_has():
    model, other = tiny.seq2seq("t5"), tiny.seq2seq("t5", vocabulary=72)
    verifier = Seq2Seq(model.model, model.config, tiny.tokenizer(model), None)
    drafter = Seq2Seq(other.model, other.config, tiny.tokenizer(other), None)
    with pytest.raises(UsageError, match="token 64 is None in the verifier and 'w64' in the drafter"):
        verifier.generate(["w5"], Assisted(drafter.drafter(), 3))
    padded = Seq2Seq(other.model, other.config, tiny.tokenizer(model), None)  # rows without words are padding
    done = verifier.generate(["w5 w6"], Assisted(padded.drafter(), 3), max_new_tokens=CAP)
    assert done.sequences == verifier.generate(["w5 w6"], max_new_tokens=CAP).sequences


def test_special_tokens_that_differ():
    with pytest.raises(UsageError, match="verifier and drafter differ: eos_token_id is 0 and 1; they must be equal"):
        named("marian").generate(["w5"], Assisted(named("t5").drafter(), 3))


def test_sizes_that_differ_without_tokenizers():
    model, other = tiny.seq2seq("t5"), tiny.seq2seq("t5", vocabulary=72)
    with pytest.raises(UsageError, match="vocabularies of 64 and 72 entries"):
        model.generate([[5, 1]], Assisted(other.drafter(), 3))


def test_a_drafter_with_fewer_positions():
    model, small = tiny.seq2seq("bart"), tiny.small_positions("bart", 20)
    with pytest.raises(UsageError, match="the drafter has 20 positions and the verifier 96"):
        model.generate([[5, 2]], Assisted(small.drafter(), 3))
    assert small.generate([[5, 2]], Assisted(model.drafter(), 3), max_new_tokens=5).sequences


def test_trace_only_where_asked():
    model = named()
    assert all(row.trace is None for row in model.generate(TEXTS, max_new_tokens=CAP).rows)
    done = model.generate(TEXTS, max_new_tokens=CAP, trace=True)
    assert [row.trace for row in done.rows] == ["v" * len(row.tokens) for row in done.rows]
    for row in model.generate(TEXTS, Beam(2), max_new_tokens=CAP, trace=True).rows:
        assert row.trace == "v" * len(row.tokens)


def test_sampling_is_repeatable_and_each_source_draws_its_own():
    model = named()
    same = ["w5 w6"] * 8
    first, again = (model.generate(same, Sample(temperature=2.0, seed=1), max_new_tokens=CAP) for _ in range(2))
    assert first.sequences == again.sequences
    assert len({tuple(row) for row in first.sequences}) > 2
    other = model.generate(same, Sample(temperature=2.0, seed=2), max_new_tokens=CAP)
    assert other.sequences != first.sequences
