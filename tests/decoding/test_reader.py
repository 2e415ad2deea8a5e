"""Sources that are encoded ahead give the same rows, whatever happens before their turn comes."""

import copy

import pytest
import tiny
import torch

from spec2seq import Greedy
from spec2seq.decoding import reader
from spec2seq.decoding.graphs import Graphs
from spec2seq.decoding.loop import Engine

CAP = 12
MODEL = tiny.seq2seq("marian")
SOURCES = tiny.sources(MODEL, 12, 6)


def engine_that_reads_ahead(slots: int, graphs: bool = False) -> Engine:
    """As on a GPU, but for the stream; `used` has the groups that were read ahead and then entered, `encoded` the
    numbers of those that were encoded."""
    verifier = copy.copy(MODEL.model)
    verifier.graphs = graphs
    engine = Engine(verifier, Greedy(), slots)
    engine.reader.overlaps, engine.used = True, []
    engine.reader._join = engine.used.append
    encode, engine.encoded = engine.reader._encode, []

    def recorded(requests):
        engine.encoded += [request.id for request in requests]
        return encode(requests)

    engine.reader._encode = recorded
    return engine


def decode(engine: Engine, cancel: dict[int, int] | None = None) -> dict[int, list[int]]:
    """The rows; `cancel` names a request to take out after a step."""
    done, step = {}, 0
    while engine.busy:
        done |= {completion.id: completion.tokens for completion in engine.step()}
        step += 1
        if cancel and step in cancel:
            engine.cancel(cancel[step])
    return done


@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize("graphs", [True, False])
def test_the_same_rows(slots, graphs):
    engine = engine_that_reads_ahead(slots, graphs)
    for source in SOURCES:
        engine.submit(source, CAP)
    done = decode(engine)
    wanted = MODEL.generate(SOURCES, max_new_tokens=CAP).sequences
    assert [done[number] for number in range(len(SOURCES))] == wanted
    assert engine.used and engine.reader.ahead is None
    assert sorted(engine.encoded) == list(range(len(SOURCES)))  # each once


def test_a_request_that_was_read_ahead_is_cancelled():
    engine = engine_that_reads_ahead(4)
    for source in SOURCES:
        engine.submit(source, CAP)
    done = decode(engine, {1: 4, 2: 5})
    wanted = MODEL.generate(SOURCES, max_new_tokens=CAP).sequences
    assert done == {number: row for number, row in enumerate(wanted) if number not in (4, 5)}


def test_readers_of_a_device_share_a_stream_that_no_graph_has(monkeypatch):
    made = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority=0: made.append((device, priority)) or len(made))
    device = torch.device("cuda", 7)
    assert reader._stream(device) == reader._stream(torch.device("cuda:7")) == 1
    assert Graphs(device).stream == 2 and made == [(device, 0), (device, -1)]
    reader._stream.cache_clear()


def test_nothing_is_read_ahead_on_a_cpu():
    engine = Engine(MODEL.model, Greedy(), 1)
    for source in SOURCES[:2]:
        engine.submit(source, CAP)
    engine.step()
    engine.reader.read_ahead()
    assert engine.reader.ahead is None
