"""Submit, step and cancel, as a server uses them."""

import pytest
import tiny

from spec2seq import Assisted, Exact, Greedy, Lookup, Sample, UsageError
from spec2seq.decoding.loop import Engine

CAP = 16
MODEL = tiny.seq2seq("bart")
SOURCES = tiny.sources(MODEL, 9, 31)


@pytest.fixture(scope="module")
def greedy():
    return MODEL.generate(SOURCES, max_new_tokens=CAP).sequences


def methods():
    little = tiny.noisy_copy(MODEL, 0.02).drafter()
    return {"greedy": Greedy(), "assisted": Assisted(little, 3), "lookup": Lookup(3)}


def drain(engine: Engine, found: dict | None = None) -> dict[int, list[int]]:
    found = {} if found is None else found
    while engine.busy:
        found |= {completion.id: completion.tokens for completion in engine.step()}
    return found


def test_an_idle_engine_does_nothing():
    engine = Engine(MODEL.model, Greedy(), 2)
    assert not engine.busy
    assert engine.step() == []
    assert engine.stats.verifier_passes == 0


@pytest.mark.parametrize("method", methods())
@pytest.mark.parametrize("victim", range(4))
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_cancelled_row_leaves_and_the_others_go_on(method, victim, after, greedy):
    """Four slots, so the victim is the first, a middle or the last row in flight; others wait."""
    engine = Engine(MODEL.model, methods()[method], 4)
    ids = [engine.submit(source, CAP) for source in SOURCES[:6]]
    found = {}
    for _ in range(after):
        found |= {completion.id: completion.tokens for completion in engine.step()}
    gone = ids[victim] in found
    assert engine.cancel(ids[victim]) is not gone
    assert engine.cancel(ids[victim]) is False
    drain(engine, found)
    assert found == {index: row for index, row in zip(ids, greedy[:6], strict=True) if gone or index != ids[victim]}
    assert engine.stats.rows == len(found)


def test_waiting_requests_can_be_cancelled(greedy):
    engine = Engine(MODEL.model, Greedy(), 2)
    ids = [engine.submit(source, CAP) for source in SOURCES[:5]]
    engine.step()
    assert engine.cancel(ids[3])
    assert not engine.cancel(99)
    assert drain(engine) == {ids[place]: greedy[place] for place in (0, 1, 2, 4)}


def test_all_cancelled_leaves_an_idle_engine(greedy):
    engine = Engine(MODEL.model, methods()["assisted"], 3)
    longest = sorted(range(9), key=lambda place: -len(greedy[place]))[:3]
    ids = [engine.submit(SOURCES[place], CAP) for place in longest]
    engine.step()
    assert all(engine.cancel(index) for index in ids)
    assert not engine.busy and engine.step() == []
    again = engine.submit(SOURCES[4], CAP)
    assert drain(engine) == {again: greedy[4]}


@pytest.mark.parametrize("method", methods())
def test_requests_come_while_others_run(method, greedy):
    engine = Engine(MODEL.model, methods()[method], 4)
    found, ids = {}, []
    for source in SOURCES:
        ids.append(engine.submit(source, CAP))
        found |= {completion.id: completion.tokens for completion in engine.step()}
    drain(engine, found)
    assert [found[index] for index in ids] == greedy


def test_longer_sources_come_later(greedy):
    """Tensors grow while shorter rows are in flight."""
    sources = sorted(SOURCES, key=len)
    expected = {tuple(source): row for source, row in zip(SOURCES, greedy, strict=True)}
    engine = Engine(MODEL.model, methods()["assisted"], 9)
    found, ids = {}, {}
    for source in sources:
        ids[engine.submit(source, CAP)] = tuple(source)
        found |= {completion.id: completion.tokens for completion in engine.step()}
    drain(engine, found)
    assert {ids[index]: row for index, row in found.items()} == expected


@pytest.mark.parametrize(
    ("source", "cap", "message"),
    [
        ([], 4, "the source has 0 tokens; allowed: 1 to 96"),
        ([5] * 97, 4, "the source has 97 tokens; allowed: 1 to 96"),
        ([5, 2], 0, "max_new_tokens is 0; allowed: from 1 to 96"),
        ([5, 2], 97, "max_new_tokens is 97"),
        ([5, 2], None, "max_new_tokens is None; allowed: whole numbers"),
        ([5, 64, 2], 4, "the source has the token id 64; allowed: 0 to 63"),
        ([5, -3, 2], 4, "the source has the token id -3; allowed: 0 to 63"),
        (([5, 2], [9, 10**9]), 4, "the prompt has the token id 1000000000; allowed: 0 to 63"),
        (([5, 2], [9], 64), 4, "the start has the token id 64; allowed: 0 to 63"),
    ],
)
def test_requests_that_cannot_be_served(source, cap, message, greedy):
    engine = Engine(MODEL.model, Greedy(), 2)
    source, prompt, start = (*source, None)[:3] if isinstance(source, tuple) else (source, (), None)
    with pytest.raises(UsageError) as error:
        engine.submit(source, cap, prompt=prompt, start=start)
    assert message in str(error.value)
    assert not engine.busy  # and the engine goes on with others
    index = engine.submit(SOURCES[0], CAP)
    assert drain(engine) == {index: greedy[0]}


def test_what_fails_on_its_way_in_is_not_in_flight(greedy, monkeypatch):
    engine = Engine(MODEL.model, Greedy(), 2)
    monkeypatch.setattr(engine.reader, "_encode", lambda requests: 1 / 0)
    engine.submit(SOURCES[0], CAP)
    with pytest.raises(ZeroDivisionError):
        engine.step()
    assert not engine.busy
    monkeypatch.undo()
    assert drain(engine, {}) == {} and engine.submit(SOURCES[1], CAP) == 1
    assert drain(engine) == {1: greedy[1]}


@pytest.mark.parametrize("most", [0, -3, None, 1.5])
def test_a_step_is_an_iteration_at_least(most):
    with pytest.raises(UsageError, match=f"most is {most}; allowed: "):
        Engine(MODEL.model, Greedy(), 2).step(most)


def test_slots_are_filled_in_order_and_in_groups():
    engine = Engine(MODEL.model, Greedy(), 8)
    for source in SOURCES:
        engine.submit(source, 2)
    engine.step()
    assert [request.id for request in engine.scheduler.running] == list(range(8))
    assert [request.id for request in engine.scheduler.waiting] == [8]


def test_a_request_draws_by_its_own_seed():
    method = Sample(seed=5, drafter=methods()["assisted"].drafter)
    assert method.acceptance != Exact()

    def run(order):
        engine = Engine(MODEL.model, method, 3)
        ids = {engine.submit(SOURCES[place], CAP, seed=100 + place): place for place in order}
        return {ids[index]: row for index, row in drain(engine).items()}

    forwards = run(range(6))
    assert forwards == run(reversed(range(6)))
    engine = Engine(MODEL.model, method, 3)
    ids = [engine.submit(SOURCES[0], CAP) for _ in range(8)]
    rows = drain(engine)
    assert len({tuple(rows[index]) for index in ids}) > 3  # one source, many draws
