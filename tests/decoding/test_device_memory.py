"""How many rows have room on a GPU: numbers, without one."""

import copy
import dataclasses
import math
from types import SimpleNamespace

import pytest
import tiny
import torch

from spec2seq import Assisted, Beam, Greedy, Lookup, Seq2Seq, SpecDec, UsageError, api, runner
from spec2seq.decoding import device_memory
from spec2seq.decoding.beam import Search
from spec2seq.decoding.cached_blocks import CachedBlockDrafter
from spec2seq.decoding.device_memory import GIB, planned_rows, row_bytes, rows_within
from spec2seq.models.architecture import Architecture, StackShape

MODEL = tiny.seq2seq("bart")


def bart_large() -> Architecture:
    stack = StackShape(layers=12, heads=16, head_width=64, ffn_width=4096)
    return Architecture(50265, 1024, stack, stack, "gelu", 1, 2, 2, position_rows=1026, position_offset=2)


def test_a_row_of_bart_large():
    """Keys and values of 12 layers of 1,024 numbers for every source and output token, and the moment's tensors."""
    a = bart_large()
    caches = 2 * 12 * 1024 * (400 + 128) * 2
    momentary = 50265 * 6 + 400 * (6 * 1024 + 2 * 4096) * 2
    assert row_bytes(a, [a.decoder], 0, 2, 400, 128, 0) == math.ceil(1.5 * caches) + momentary
    drafter = StackShape(1, 16, 64, 1024)
    more = row_bytes(a, [a.decoder, drafter], 2, 2, 400, 128, 5) - row_bytes(a, [a.decoder], 0, 2, 400, 128, 0)
    waiting = 400 * 1024 * 2
    assert more == math.ceil(1.5 * 2 * (2 * 1024 * (400 + 128) + 2 * 1024 * 128)) + waiting + 5 * 50265 * 6


def test_relative_positions_take_a_bias_for_every_pair():
    a = dataclasses.replace(bart_large(), position_rows=None)
    more = row_bytes(a, [a.decoder], 0, 2, 400, 128, 0) - row_bytes(bart_large(), [a.decoder], 0, 2, 400, 128, 0)
    assert more == 400 * 400 * (2 * 16 * 2 + 40)


def test_as_many_rows_as_have_room():
    assert rows_within(8, 100, 10_000) == 8
    assert rows_within(128, 100, 10_000) == 90  # a tenth is kept
    with pytest.raises(UsageError, match="takes 2 GiB, and 0.9 GiB .* lower max_new_tokens, or raise device_memory"):
        rows_within(4, 2 * GIB, GIB)


@pytest.mark.parametrize("method", ["greedy", "specdec", "paper", "assisted", "lookup"])
def test_what_is_planned_holds_what_a_run_allocates(method, monkeypatch):
    """The caches that an engine has after rows of the largest size are within a row's bytes."""
    chosen = {
        "greedy": Greedy(), "specdec": SpecDec(tiny.cached_drafter(MODEL), 4), "lookup": Lookup(3),
        "paper": SpecDec(tiny.paper_drafter(MODEL), 4), "assisted": Assisted(tiny.noisy_copy(MODEL, 0.1).drafter(), 3),
    }[method]  # fmt: skip
    seen = []
    monkeypatch.setattr(device_memory, "_left", lambda device: 10 * GIB)
    monkeypatch.setattr(device_memory, "rows_within", lambda rows, row, free: seen.append(row) or rows)
    assert planned_rows(MODEL.model, chosen, 3, 64, 60) == 3
    cache = MODEL.model.new_cache(1)
    cache.reserve(60)
    cache.reserve_source(64)
    assert seen[0] > 1.5 * cache.nbytes


@pytest.mark.parametrize("beams", [2, 5])
def test_the_beams_of_a_sentence_are_planned(beams, monkeypatch):
    seen, method = [], Beam(beams).completed({})
    monkeypatch.setattr(device_memory, "_left", lambda device: 10 * GIB)
    monkeypatch.setattr(device_memory, "rows_within", lambda rows, row, free: seen.append(row) or rows)
    assert planned_rows(MODEL.model, method, 3, 64, 60) == 3
    sources = [[5] * 63 + [2]] * 3
    search = Search(MODEL.model, sources, method, [60] * 3, [], [0] * 3, (-1,))
    for _ in range(59):
        search.step()
    held = search.cache.nbytes + search.tokens.nbytes + search.cache.origins.nbytes
    assert seen[0] > held / 3
    a = MODEL.model.architecture
    assert seen[0] / beams > row_bytes(a, [a.decoder], 0, 8, 0, 60, 0)
    assert planned_rows(MODEL.model, method, 3, 256, 60) == 3  # a longer source counts once
    more = row_bytes(a, [a.decoder], 0, 8, 256, 0, 0) - row_bytes(a, [a.decoder], 0, 8, 64, 0, 0)
    assert seen[1] - seen[0] == more


def test_idle_loops_count_as_room_and_go_where_it_is_short(monkeypatch):
    verifier = tiny.small_positions("bart", 40).model
    verifier.graphs = True
    model = Seq2Seq(verifier, SimpleNamespace(), None, None)
    model.generate([[5, 6, 2]], max_new_tokens=4)
    held = device_memory.idle_bytes(verifier)
    assert held > 0
    monkeypatch.setattr(device_memory, "row_bytes", lambda *given: held)
    monkeypatch.setattr(device_memory, "_left", lambda device: 100 * held)
    assert planned_rows(verifier, Greedy(), 4, 20, 20) == 4 and device_memory.idle_bytes(verifier) == held
    monkeypatch.setattr(device_memory, "_left", lambda device: 3 * held // 2)
    assert planned_rows(verifier, Greedy(), 4, 20, 20) == 2 and device_memory.idle_bytes(verifier) == 0


def test_an_idle_loop_goes_with_its_drafter():
    """Training validates copy after copy."""
    verifier = copy.copy(MODEL.model)
    verifier.graphs = True
    model = Seq2Seq(verifier, SimpleNamespace(), None, None)
    model.generate([[5, 6, 2]], max_new_tokens=4)
    alone = device_memory.idle_bytes(verifier)
    drafter = CachedBlockDrafter(tiny.cached_drafter(MODEL).model)
    model.generate([[5, 6, 2]], SpecDec(drafter, 3), max_new_tokens=4)
    assert device_memory.idle_bytes(verifier) > alone > 0
    del drafter
    assert device_memory.idle_bytes(verifier) == alone


def test_a_limit_is_of_gpus():
    with pytest.raises(UsageError, match="device_memory is of GPUs; device is 'cpu'"):
        device_memory.limit(torch.device("cpu"), 4.0)


def test_a_limit_is_of_a_device_with_its_number(monkeypatch):
    limits = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=8 * GIB))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: limits.append(given))
    for name in ("cuda", "cuda:1"):
        device_memory.limit(torch.device(name), 2.0)
    assert limits == [(0.25, 3), (0.25, 1)]


def test_a_run_on_a_gpu_has_the_planned_rows(monkeypatch):
    """The plan decides how many slots the engine of a run has."""
    asked = []
    monkeypatch.setattr(runner, "planned_rows", lambda *given: asked.append(given[2:]) or 2)
    monkeypatch.setattr(type(MODEL.model), "device", SimpleNamespace(type="cuda"))
    monkeypatch.setattr(
        api, "Engine", lambda model, method, slots, *rest, **more: SimpleNamespace(slots=slots, stats=0)
    )
    made = runner.Runner(MODEL, Greedy(), 8, 32, False, False)
    assert asked == [(32, 96, 8)] and made.engine.slots == 2
    runner.Runner(MODEL, Greedy(), 8, 32, False, False, [[5, 6, 2], [7, 2]])
    assert asked[1:] == [(2, 3, 8)]
    assert runner.Runner(MODEL, Beam(3), 8, 32, False, False).batch_size == 2  # sentences
