"""The loop with drafters that are always, never and sometimes right: exact counts, ends and caps."""

import copy

import pytest
import tiny
import torch
from decoding.replay import Expected, Replay, ReplaySession, corrupted

from spec2seq import Draft, Exact, FixedLength, Rollback, Seq2Seq, Spec2SeqError, Speculative
from spec2seq.decoding.loop import Engine
from spec2seq.models import executor, native

EVERY_THIRD = range(2, 99, 3)


def replay(model: Seq2Seq, sources, scripts, k: int, cap: int, batch_size: int = 1, acceptance=None):
    """Generate with scripts as drafts; returns the generation and the drafter."""
    drafter = Replay({tuple(source): script for source, script in zip(sources, scripts, strict=True)})
    method = Speculative(drafter, FixedLength(k), acceptance or Exact())
    done = model.generate(sources, method, max_new_tokens=cap, batch_size=batch_size, trace=True)
    return done, drafter


def greedy_of(model: Seq2Seq, cap: int, ended: bool, count: int = 1, least: int = 5):
    """Sources whose greedy outputs of `least` or more tokens end by the end token, or by the cap; and those."""
    sources = tiny.sources(model, 60, 7)
    rows = model.generate(sources, max_new_tokens=cap, batch_size=30).sequences
    unique = {tuple(source): row for source, row in zip(sources, rows, strict=True)}
    found = [
        (list(source), row)
        for source, row in unique.items()
        if (row[-1] == model.config.eos_token_id) == ended and len(row) >= least
    ][:count]
    assert len(found) == count
    return [source for source, _ in found], [row for _, row in found]


@pytest.mark.parametrize(
    ("wrong", "trace", "drafted", "rollbacks", "drafted_at", "accepted_at"),
    [
        ((), "ddddvddddvdv", 9, 0, [3, 2, 2, 2], [3, 2, 2, 2]),
        (range(99), "v" * 12, 38, 11, [11, 10, 9, 8], []),
        (EVERY_THIRD, "ddvddvddvddv", 14, 3, [4, 4, 3, 3], [4, 4]),
        ((0,), "vddddvddddvv", 12, 1, [3, 3, 3, 3], [2, 2, 2, 2]),
    ],
    ids=["always", "never", "every third wrong", "first wrong"],
)
def test_counts_by_hand(family, wrong, trace, drafted, rollbacks, drafted_at, accepted_at):
    """12 tokens, drafts of 4; a draft leaves room for the verifier's own token."""
    model = tiny.seq2seq(family)
    (source,), (greedy,) = greedy_of(model, 12, ended=False)
    done, _ = replay(model, [source], [corrupted(greedy, wrong, 64)], k=4, cap=12)
    row = done.rows[0]
    assert row.tokens == greedy
    assert row.trace == trace
    counts = row.counts
    assert counts.new_tokens == 12
    # The verifier writes the last token of every pass here.
    assert counts.verifier_calls == trace.count("v")
    assert counts.tokens_per_verifier_call == 12 / trace.count("v")
    assert (counts.drafted, counts.accepted, counts.rollbacks) == (drafted, trace.count("d"), rollbacks)
    assert counts.discarded == drafted - trace.count("d")
    assert counts.drafted_at == drafted_at and counts.accepted_at == accepted_at
    assert counts.acceptance == trace.count("d") / drafted


@pytest.mark.parametrize("k", [1, 2, 3, 5, 16])
def test_counts_of_ragged_rows(family, k):
    """Rows of all kinds together, in five slots: each has the counts it has alone."""
    model, cap = tiny.seq2seq(family), 14
    sources = [list(source) for source in {tuple(source) for source in tiny.sources(model, 16, 9)}]
    rows = model.generate(sources, max_new_tokens=cap).sequences
    scripts = [
        corrupted(row, [(), range(99), EVERY_THIRD, (0, 4), (len(row) - 1,)][index % 5], 64)
        for index, row in enumerate(rows)
    ]
    done, drafter = replay(model, sources, scripts, k, cap, batch_size=5)
    for row, greedy, script in zip(done.rows, rows, scripts, strict=True):
        expected = Expected(greedy, script, k, cap, model.config.eos_token_id)
        assert row.tokens == greedy
        assert row.trace == expected.trace
        assert (row.counts.verifier_calls, row.counts.drafted, row.counts.accepted) == (
            expected.calls, expected.drafted, expected.accepted,
        )  # fmt: skip
    assert sum(map(sum, drafter.commits)) >= sum(map(len, rows)) - len(rows)
    assert all(0 <= room < cap for rooms in drafter.rooms for room in rooms)
    assert 0 < done.stats.accepted < done.stats.drafted


@pytest.mark.parametrize(
    ("name", "calls", "not_stood", "beyond", "rollbacks"),
    [
        ("in the draft", 1, 0, 0, 0),
        ("as the replacement", 1, 1, 1, 1),
        ("after a draft that stands whole", 1, 1, 0, 0),
        ("far too early in the draft", 2, 1, None, 1),
        ("with a draft that goes on behind it", 1, 0, 3, None),
    ],
)
def test_the_end_token(family, name, calls, not_stood, beyond, rollbacks):
    """One output that ends by itself. Of its tokens the verifier writes `not_stood`; `beyond` drafted ones are
    discarded."""
    model = tiny.seq2seq(family)
    sources, (greedy,) = greedy_of(model, 20, ended=True)
    eos, size = model.config.eos_token_id, len(greedy)
    script = {
        "in the draft": greedy,
        "as the replacement": corrupted(greedy, (size - 1,), 64),
        "after a draft that stands whole": greedy[:-1],
        "far too early in the draft": [*greedy[:2], eos, *greedy[3:]],
        "with a draft that goes on behind it": [*greedy, 9, 8, 7],
    }[name]
    done, _ = replay(model, sources, [script], k=size + 3, cap=30)
    row, expected = done.rows[0], Expected(greedy, script, size + 3, 30, eos)
    assert row.tokens == greedy
    assert row.counts.verifier_calls == calls
    assert row.trace.count("v") == not_stood
    assert row.trace == expected.trace
    assert (row.counts.drafted, row.counts.accepted) == (expected.drafted, expected.accepted)
    assert beyond is None or row.counts.discarded == beyond
    assert rollbacks is None or row.counts.rollbacks == rollbacks
    if name == "in the draft":  # nothing was left for the verifier to write
        assert row.counts.tokens_per_verifier_call == size


def test_rows_that_end_in_the_same_iteration(family):
    """All of five slots at once, by the end token and by the cap, while others wait."""
    model, cap = tiny.seq2seq(family), 12
    ended, ended_rows = greedy_of(model, cap, ended=True, count=4, least=2)
    capped, capped_rows = greedy_of(model, cap, ended=False, count=4)
    sources, rows = ended + capped, ended_rows + capped_rows
    done, drafter = replay(model, sources, rows, k=20, cap=cap, batch_size=5)
    assert done.sequences == rows
    assert done.stats.verifier_passes == 2  # five rows, then three
    assert [len(rooms) for rooms in drafter.rooms] == [5, 3]


@pytest.mark.parametrize("cap", range(1, 8))
@pytest.mark.parametrize("k", [1, 3, 25])
def test_caps_hold_when_drafts_want_more(cap, k):
    model = tiny.seq2seq("bart")
    (source,), (greedy,) = greedy_of(model, 24, ended=False)
    for wrong in ((), EVERY_THIRD):
        done, drafter = replay(model, [source], [corrupted(greedy, wrong, 64)], k, cap)
        assert done.sequences == [greedy[:cap]]
        assert done.stats.new_tokens == cap
        assert all(room < cap for (room,) in drafter.rooms)


def test_rows_with_caps_of_their_own():
    """The engine takes a cap for each request; k is chosen for the row with the most room."""
    model = tiny.seq2seq("marian")
    sources, rows = greedy_of(model, 24, ended=False, count=4)
    drafter = Replay({tuple(source): row for source, row in zip(sources, rows, strict=True)})
    engine = Engine(model.model, Speculative(drafter, FixedLength(6), Exact()), 4)
    caps = [1, 4, 9, 24]
    ids = [engine.submit(source, cap) for source, cap in zip(sources, caps, strict=True)]
    done = {}
    while engine.busy:
        done |= {completion.id: completion.tokens for completion in engine.step()}
    assert [done[index] for index in ids] == [row[:cap] for row, cap in zip(rows, caps, strict=True)]
    assert drafter.rooms[0] == [0, 3, 8, 23]


class Heedless(Replay):
    """Drafts whole scripts whatever room there is, says that they are longer than they are, and leaves `behind` where
    a script is over."""

    behind = -1

    def session(self, rows, verifier):
        made = ReplaySession(self, rows)

        def draft(k, room, confidence, sampling):
            places = [length - 1 for length in rows.host_lengths[: rows.count]]
            ids = [rows.source_tokens[slot, : rows.source_lengths[slot]].tolist() for slot in range(rows.count)]
            scripts = [self.scripts[tuple(one)][place : place + k] for one, place in zip(ids, places, strict=True)]
            lengths = torch.tensor([len(script) + (len(script) == k) for script in scripts])
            return Draft(torch.tensor([(script + [self.behind] * k)[:k] for script in scripts]), lengths)

        made.draft = draft
        return made


@pytest.fixture(params=["torch", "native"])
def single(request) -> Seq2Seq:
    """A model in float32, over tensors and in the compiled executor."""
    if request.param == "native" and native.unavailable():
        pytest.skip(native.unavailable())
    model = copy.deepcopy(tiny.seq2seq("marian"))
    executor.prepare(model.model.float(), "float32", request.param)
    return model


def test_caps_hold_whatever_a_drafter_says(single):
    sources, rows = greedy_of(single, 24, ended=False, count=4)
    drafter = Heedless({tuple(source): row for source, row in zip(sources, rows, strict=True)})
    caps = [1, 4, 9, 24]
    engine = Engine(single.model, Speculative(drafter, FixedLength(6), Exact()), 4)
    ids = [engine.submit(source, cap) for source, cap in zip(sources, caps, strict=True)]
    done = {}
    while engine.busy:
        done |= {completion.id: completion.tokens for completion in engine.step()}
    assert [done[index] for index in ids] == [row[:cap] for row, cap in zip(rows, caps, strict=True)]
    assert engine.stats.accepted > 0


def test_a_draft_of_ids_that_there_are_not_is_refused(single):
    (source,), (row,) = greedy_of(single, 12, ended=False)
    method = Speculative(Heedless({tuple(source): [row[0], 10**6, row[2]]}), FixedLength(3))
    with pytest.raises(Spec2SeqError, match="ReplaySession drafts ids that the vocabulary does not have"):
        single.generate([source], method, max_new_tokens=12)


def test_a_rule_that_never_rolls_back_writes_the_script():
    """BiLD with the rollback off: what the drafter says, and the verifier's token after each draft."""
    model = tiny.seq2seq("marian")
    (source,), (greedy,) = greedy_of(model, 12, ended=False)
    script = [11, 12, 13, 14] * 3
    done, _ = replay(model, [source], [script], k=3, cap=12, acceptance=Rollback(None))
    row = done.rows[0]
    assert row.trace == "dddv" * 3
    assert [token for token, writer in zip(row.tokens, row.trace, strict=True) if writer == "d"] == [
        11, 12, 13, 11, 12, 13, 11, 12, 13,
    ]  # fmt: skip
    assert row.tokens != greedy


def test_a_drafter_that_says_nothing():
    model = tiny.seq2seq("t5")
    sources, rows = greedy_of(model, 12, ended=False, count=2)
    done, drafter = replay(model, sources, [[], []], k=4, cap=12, batch_size=2)
    assert done.sequences == rows
    assert done.stats.drafted == 0 and done.stats.acceptance is None
    assert len(drafter.rooms) == 11  # asked at every pass but the last, where there is no room


def test_a_length_of_zero_never_asks():
    model = tiny.seq2seq("t5")
    sources, rows = greedy_of(model, 12, ended=False)
    done, drafter = replay(model, sources, rows, k=0, cap=12)
    assert done.sequences == rows and drafter.rooms == [] and done.stats.drafter_calls == 0
