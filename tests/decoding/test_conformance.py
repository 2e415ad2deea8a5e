"""Every drafter with every acceptance rule and every length rule: a new one is covered by its registry."""

import copy
import dataclasses
import json

import pytest
import tiny

from spec2seq import Assisted, Beam, ConfidenceLength, Seq2Seq, Speculative, UsageError
from spec2seq.decoding.acceptance import ACCEPTANCE_RULES
from spec2seq.decoding.block_drafters import BLOCK_DRAFTERS
from spec2seq.decoding.drafters import DRAFTERS
from spec2seq.decoding.lengths import LENGTH_RULES
from spec2seq.decoding.lookup import NgramLookup
from spec2seq.decoding.stats import Counts

CAP, SLOTS = 15, 5
MODEL = tiny.seq2seq("marian")
SOURCES = tiny.sources(MODEL, 11, 21)

KINDS = DRAFTERS | BLOCK_DRAFTERS
# Built with their defaults unless they need something.
MAKE = {
    "little": lambda: tiny.noisy_copy(MODEL, 0.02).drafter(),
    "cached": lambda: tiny.cached_drafter(MODEL),
    "paper": lambda: tiny.paper_drafter(MODEL, seed=9),  # some of its guesses are right
}
LENGTHS = {name: [rule()] for name, rule in LENGTH_RULES.items()}
LENGTHS["confidence"] = [ConfidenceLength(0.5, 6), ConfidenceLength(None, 3)]
SAME_IN_ANY_BATCH = ("fixed", "confidence")  # an adaptive length learns from all rows of the batch
# What does not depend on who else is in the batch: a little model's passes go on as long as any row drafts.
OWN_COUNTS = {field.name for field in dataclasses.fields(Counts)} - {"drafter_calls", "drafter_tokens"}


def drafter(name: str):
    return MAKE.get(name, KINDS[name])()


def combinations():
    for drafter_name in KINDS:
        for rule in ACCEPTANCE_RULES:
            for length_name, lengths in LENGTHS.items():
                for length in lengths:
                    if length.confidence is None or drafter(drafter_name).has_confidence:
                        label = f"{drafter_name}-{rule}-{length_name}-{length.confidence}"
                        yield pytest.param(drafter_name, rule, length_name, length, id=label)


@pytest.fixture(scope="module")
def greedy():
    rows = MODEL.generate(SOURCES, max_new_tokens=CAP).sequences
    assert len({len(row) for row in rows}) >= 3
    return rows


@pytest.mark.parametrize(("drafter_name", "rule", "length_name", "length"), list(combinations()))
def test_conformance(drafter_name, rule, length_name, length, greedy):
    acceptance = ACCEPTANCE_RULES[rule]()
    method = Speculative(drafter(drafter_name), length, acceptance)
    together, alone = (
        MODEL.generate(SOURCES, method, max_new_tokens=CAP, batch_size=size, trace=True) for size in (SLOTS, 1)
    )
    for generation in (together, alone):
        check_rows(MODEL, generation)
        check_sums(generation)
    assert alone.stats.verifier_passes == alone.stats.verifier_calls
    if acceptance.lossless:
        assert together.sequences == alone.sequences == greedy
    if length_name in SAME_IN_ANY_BATCH:
        assert together.sequences == alone.sequences
        for a, b in zip(together.rows, alone.rows, strict=True):
            assert a.trace == b.trace
            assert {name: getattr(a.counts, name) for name in OWN_COUNTS} == {
                name: getattr(b.counts, name) for name in OWN_COUNTS
            }
    assert together.stats.drafted > 0
    assert together.stats.accepted > 0


def check_rows(model: Seq2Seq, generation) -> None:
    for row in generation.rows:
        counts = row.counts
        assert 1 <= len(row.tokens) <= CAP
        assert model.config.eos_token_id not in row.tokens[:-1]
        assert len(row.tokens) == CAP or row.tokens[-1] == model.config.eos_token_id
        assert len(row.trace) == len(row.tokens) == counts.new_tokens
        assert row.trace.count("d") == counts.accepted
        assert counts.new_tokens == counts.accepted + row.trace.count("v")
        assert counts.drafted == counts.accepted + counts.discarded
        assert sum(counts.drafted_at) == counts.drafted and sum(counts.accepted_at) == counts.accepted
        assert all(a <= b for a, b in zip(counts.accepted_at, counts.drafted_at, strict=False))
        assert counts.drafted_at == sorted(counts.drafted_at, reverse=True)
        # Each pass writes one token of the verifier's own, but for one that ends with a drafted end token.
        assert row.trace.count("v") in (counts.verifier_calls, counts.verifier_calls - 1)
        assert counts.tokens_per_verifier_call == counts.new_tokens / counts.verifier_calls


def check_sums(generation) -> None:
    total = Counts()
    for row in generation.rows:
        total.add(row.counts)
    for field in dataclasses.fields(Counts):
        assert getattr(generation.stats, field.name) == getattr(total, field.name), field.name
    assert generation.stats.rows == len(generation.rows) == len(SOURCES)
    calls = [row.counts.verifier_calls for row in generation.rows]
    assert max(calls) <= generation.stats.verifier_passes <= sum(calls)
    read = json.loads(json.dumps(generation.stats.as_dict()))
    assert read["acceptance"] == generation.stats.accepted / generation.stats.drafted
    assert read["tokens_per_verifier_call"] == generation.stats.tokens_per_verifier_call


@pytest.mark.parametrize("rule", ACCEPTANCE_RULES)
def test_the_same_call_gives_the_same_rows(rule):
    method = Speculative(drafter("little"), LENGTH_RULES["fixed"](3), ACCEPTANCE_RULES[rule]())
    runs = [MODEL.generate(SOURCES, method, max_new_tokens=CAP, batch_size=4) for _ in range(2)]
    assert runs[0].rows == runs[1].rows


def test_an_order_of_sources_changes_nothing(greedy):
    order = [7, 2, 9, 0, 4]
    method = Speculative(drafter("little"), LENGTH_RULES["fixed"](3))
    done = MODEL.generate([SOURCES[place] for place in order], method, max_new_tokens=CAP, batch_size=2)
    assert done.sequences == [greedy[place] for place in order]


def test_profiling_changes_no_token(greedy):
    method = Speculative(drafter("little"), LENGTH_RULES["fixed"](3))
    done = MODEL.generate(SOURCES, method, max_new_tokens=CAP, profile=True)
    assert done.sequences == greedy
    assert set(done.stats.phases) == {"encode", "draft", "verify", "judge"}
    assert all(seconds > 0 for seconds in done.stats.phases.values())
    assert MODEL.generate(SOURCES[:1], max_new_tokens=2).stats.phases == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Speculative(MODEL), "Seq2Seq is no drafter; a Seq2Seq becomes one by .drafter()"),
        (lambda: Assisted(None, 3), "Assisted needs a drafter; without one use Greedy"),
        (lambda: MODEL.generate(SOURCES, Beam(2), profile=True), "profile is of the phases of draft and verify"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(UsageError) as error:
        make()
    assert message in str(error.value)


def test_no_confidence_no_threshold():
    with pytest.raises(UsageError, match="NgramLookup gives no confidence"):
        Speculative(NgramLookup(), ConfidenceLength(0.5, 4))


def test_a_method_serves_several_models():
    """A drafter keeps nothing of a run in itself."""
    other = copy.copy(MODEL)
    method = Speculative(drafter("little"), LENGTH_RULES["fixed"](3))
    first = MODEL.generate(SOURCES[:3], method, max_new_tokens=CAP)
    second = tiny.seq2seq("marian", 1).generate(SOURCES[:3], method, max_new_tokens=CAP)
    again = other.generate(SOURCES[:3], method, max_new_tokens=CAP)
    assert again.rows == first.rows != second.rows
    assert second.sequences == tiny.seq2seq("marian", 1).generate(SOURCES[:3], max_new_tokens=CAP).sequences
