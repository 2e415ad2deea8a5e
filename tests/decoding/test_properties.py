"""Random models, drafts, ends, caps and batches: the exact rule writes what greedy writes, token for token."""

import copy
import dataclasses
import functools
import random

import tiny
from decoding.replay import Replay
from hypothesis import given, settings
from hypothesis import strategies as st

from spec2seq import Exact, FixedLength, Seq2Seq, Speculative
from spec2seq.decoding.loop import Engine

LONGEST = 20
MODELS = [(name, 0) for name in tiny.FAMILIES]


@functools.cache
def endless(name: str, seed: int) -> dict[tuple[int, ...], list[int]]:
    """What a model writes to a dozen sources if no token ends it."""
    model = tiny.seq2seq(name, seed)
    sources = [list(source) for source in {tuple(source): None for source in tiny.sources(model, 12, seed + 5)}]
    rows = ending_with(model, -1).generate(sources, max_new_tokens=LONGEST, batch_size=12).sequences
    assert all(len(row) == LONGEST for row in rows)
    return {tuple(source): row for source, row in zip(sources, rows, strict=True)}


def ending_with(model: Seq2Seq, token: int) -> Seq2Seq:
    """The same weights with another end token, so that rows end anywhere."""
    other = copy.copy(model.model)
    other.architecture = dataclasses.replace(other.architecture, eos_token_id=token)
    return Seq2Seq(other, model.config, None, None)


def cut(row: list[int], eos: int, cap: int) -> list[int]:
    row = row[:cap]
    return row[: row.index(eos) + 1] if eos in row else row


@dataclasses.dataclass
class Case:
    """A model with an end token, some sources, what greedy writes to them, and drafts that are sometimes right."""

    model: Seq2Seq
    expected: dict[tuple[int, ...], list[int]]
    drafter: object
    k: int
    cap: int
    batch_size: int
    chance: random.Random

    @property
    def sources(self) -> list[list[int]]:
        return [list(source) for source in self.expected]

    @property
    def rows(self) -> list[list[int]]:
        return list(self.expected.values())

    @property
    def method(self) -> Speculative:
        return Speculative(self.drafter, FixedLength(self.k), Exact())

    def engine(self) -> Engine:
        return Engine(self.model.model, self.method, self.batch_size)


@st.composite
def cases(draw) -> Case:
    name, seed = draw(st.sampled_from(MODELS))
    model, rows = tiny.seq2seq(name, seed), endless(name, seed)
    chance = random.Random(draw(st.integers(0, 10_000)))
    sources = draw(st.lists(st.sampled_from(sorted(rows)), min_size=1, max_size=7, unique=True))
    eos = draw(st.sampled_from([token for source in sources for token in rows[source][:9]]))
    cap = draw(st.integers(1, LONGEST))
    if draw(st.integers(0, 4)) == 0:
        drafter = ending_with(tiny.noisy_copy(model, 0.02), eos).drafter()
    else:
        wrong = draw(st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0]))
        drafter = Replay({source: corrupted(rows[source], wrong, eos, chance) for source in sources})
    expected = {source: cut(rows[source], eos, cap) for source in sources}
    return Case(
        ending_with(model, eos), expected, drafter, draw(st.integers(1, 8)), cap, draw(st.integers(1, 6)), chance
    )


def corrupted(row: list[int], wrong: float, eos: int, chance: random.Random) -> list[int]:
    """Some tokens wrong, often the end token too early; some scripts stop before the output does."""
    script = [chance.choice([eos, chance.randrange(64)]) if chance.random() < wrong else token for token in row]
    return script[: chance.choice([LONGEST, LONGEST, chance.randrange(LONGEST)])]


def test_exact_is_greedy():
    drafted = accepted = ended = rows = 0

    @settings(max_examples=200)
    @given(cases())
    def check(case: Case):
        nonlocal drafted, accepted, ended, rows
        done = case.model.generate(
            case.sources, case.method, max_new_tokens=case.cap, batch_size=case.batch_size, trace=True
        )
        assert done.sequences == case.rows
        for row in done.rows:
            assert len(row.trace) == len(row.tokens)
            assert row.counts.drafted == row.counts.accepted + row.counts.discarded
        drafted, accepted = drafted + done.stats.drafted, accepted + done.stats.accepted
        rows += len(case.rows)
        ended += sum(len(row) < case.cap for row in case.rows)

    check()
    assert 0.2 < accepted / drafted < 0.95
    assert 0.2 < ended / rows < 0.95  # by the end token, the others by the cap


@settings(max_examples=80)
@given(cases())
def test_cancelling_changes_no_other_row(case):
    engine, found, cancelled = case.engine(), {}, set()
    ids = [engine.submit(source, case.cap) for source in case.sources]
    while engine.busy:
        if case.chance.random() < 0.3:
            victim = case.chance.choice(ids)
            assert engine.cancel(victim) == (victim not in found and victim not in cancelled)
            cancelled.add(victim)
        found |= {completion.id: completion.tokens for completion in engine.step()}
    assert set(ids) - cancelled <= set(found)
    assert found == {index: row for index, row in zip(ids, case.rows, strict=True) if index in found}


@settings(max_examples=80)
@given(cases())
def test_requests_may_come_at_any_time(case):
    engine, ids, found = case.engine(), [], {}
    while engine.busy or len(ids) < len(case.sources):
        if len(ids) < len(case.sources) and case.chance.random() < 0.5:
            ids.append(engine.submit(case.sources[len(ids)], case.cap))
        found |= {completion.id: completion.tokens for completion in engine.step()}
    assert [found[index] for index in ids] == case.rows
