"""What a machine without a GPU can tell of one: on a made-up device (`elsewhere`) all methods write the same tokens,
tensors of it and of the host never meet, and an iteration that a GPU would replay is left alone by the host."""

import copy

import elsewhere
import pytest
import tiny
import torch
from decoding.replay import Switching

from spec2seq import Assisted, Beam, BiLD, Greedy, Lookup, Rollback, Sample, Seq2Seq, SpecDec, Speculative
from spec2seq.decoding import static_loop
from spec2seq.decoding.block_drafters import PaperBlockDrafter
from spec2seq.decoding.cached_blocks import CachedBlockDrafter
from spec2seq.decoding.graphs import Graphs
from spec2seq.decoding.lengths import FixedLength
from spec2seq.decoding.loop import Engine
from spec2seq.evaluation.lossless import compare_with_greedy

CAP, SLOTS, ROWS = 12, 4, 9
GRAPHS = ["greedy", "specdec", "relaxed", "rollback"]
OTHERS = ["paper", "assisted", "shortlist", "confidence", "bild", "lookup", "sample", "rejection", "early exit", "beam"]


def method(name: str, model: Seq2Seq, served: Seq2Seq, put):
    """For `served`, which is `model` after `put`."""
    block = CachedBlockDrafter(put(tiny.cached_drafter(model, shortlist=40).model))
    little = Seq2Seq(put(tiny.noisy_copy(model, 0.02).model), model.config, None, None).drafter()
    return {
        "greedy": Greedy, "specdec": lambda: SpecDec(block, 4), "relaxed": lambda: SpecDec(block, 4, beta=20, tau=6.0),
        "rollback": lambda: Speculative(block, FixedLength(4), Rollback(6.0)),
        "paper": lambda: SpecDec(PaperBlockDrafter(put(tiny.paper_drafter(model).model)), 3),
        "assisted": lambda: Assisted(little, 3), "shortlist": lambda: Assisted(little.scoring(range(40)), 3),
        "confidence": lambda: Assisted(little, 4, 0.3), "bild": lambda: BiLD(little, 0.3, 2.0),
        "lookup": lambda: Lookup(4), "sample": lambda: Sample(seed=1, top_k=5),
        "rejection": lambda: Sample(seed=1, drafter=little), "early exit": lambda: Assisted(served.early_exit(1), 3),
        "beam": lambda: Beam(3),
    }[name]()  # fmt: skip


def moved(model: Seq2Seq) -> Seq2Seq:
    return Seq2Seq(elsewhere.put(model.model), model.config, None, model.generation_config)


def watched(monkeypatch) -> list[tuple[list, list]]:
    """Of each iteration that a graph can be made of, the reads and the copies."""
    inside = []

    def iterate(*given, real=static_loop.iterate):
        before = len(elsewhere.reads), len(elsewhere.copies)
        report = real(*given)
        inside.append((elsewhere.reads[before[0] :], elsewhere.copies[before[1] :]))
        return report

    monkeypatch.setattr(static_loop, "iterate", iterate)
    return inside


@pytest.mark.parametrize("name", GRAPHS)
def test_an_iteration_of_a_graph_has_one_read_behind_it(family, name, monkeypatch):
    model, inside = tiny.seq2seq(family), watched(monkeypatch)
    sources = tiny.sources(model, ROWS, 4)
    wanted = model.generate(sources, method(name, model, model, copy.copy), max_new_tokens=CAP, batch_size=SLOTS)
    with elsewhere.device(monkeypatch):
        there = moved(model)
        there.model.graphs = True
        found = there.generate(sources, method(name, model, there, elsewhere.put), max_new_tokens=CAP, batch_size=SLOTS)
    assert found.sequences == wanted.sequences
    assert inside == [([], [])] * found.stats.verifier_passes
    assert elsewhere.reads == ["tolist"] * len(inside)


class Captured(Graphs):
    """Graphs of the made-up device in place of CUDA's."""

    def __init__(self, device):
        super().__init__(device)
        self.captures, self.captured, self.replayed = True, 0, 0

    def _aside(self, function):
        return function()

    def _capture(self, function):
        graph, self.captured = elsewhere.Graph(function), self.captured + 1

        def replay():
            graph.replay()
            self.replayed += 1

        return replay, graph.result


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_do_with_their_memory_what_calls_do(family, name, monkeypatch):
    """Texts of several sizes, for which tensors grow in between; rows enter, leave, move and end."""
    model = tiny.seq2seq(family)
    texts = [
        (tiny.sources(model, 7, 4), CAP),
        (tiny.sources(model, 3, 6, longest=80), 70),
        (tiny.sources(model, 9, 5), CAP),
    ]
    asked = [dict(max_new_tokens=cap, batch_size=SLOTS) for _, cap in texts]
    chosen = method(name, model, model, copy.copy)
    wanted = [
        model.generate(sources, chosen, **more).sequences for (sources, _), more in zip(texts, asked, strict=True)
    ]
    monkeypatch.setattr(static_loop, "Graphs", Captured)
    with elsewhere.device(monkeypatch):
        there = moved(model)
        there.model.graphs = True
        chosen = method(name, model, there, elsewhere.put)
        for _ in range(2):
            found = [there.generate(texts[i][0], chosen, **asked[i]).sequences for i in range(len(texts))]
            assert found == wanted
        graphs = Engine(there.model, chosen, SLOTS).native.graphs
    assert 0 < graphs.captured < graphs.replayed and not graphs.failed


@pytest.mark.parametrize("lengths", [[0, 0, 4], [5, 1, 0, 2], [0] * 9 + [3]])
def test_graphs_of_drafts_that_come_and_go(family, lengths, monkeypatch):
    """Rows are read ahead, wait for sources to be read, leave in the middle, and others take their places."""
    model = tiny.seq2seq(family)
    sources = tiny.sources(model, 12, 6, longest=40)
    caps = [3 + 5 * number % 19 for number in range(len(sources))]
    monkeypatch.setattr(static_loop, "Graphs", Captured)

    def run(served: Seq2Seq, put) -> dict:
        engine, rows = Engine(served.model, method("rollback", model, served, put), 5), {}
        engine.chooser, engine.reader.overlaps = Switching(lengths), True
        for number in range(200):
            for source, cap in zip(sources, caps, strict=False) if number in (0, 5) else ():
                engine.submit(source, cap)
            rows |= {done.id: (done.tokens, done.counts.accepted_at) for done in engine.step()}
            if number in (2, 3, 7):
                assert engine.cancel(engine.scheduler.running[0].id)
        assert not engine.busy
        graphs = getattr(engine.native, "graphs", None)
        assert graphs is None or not graphs.failed
        return rows | {"captured": getattr(graphs, "captured", 0)}

    runs = [run(model, copy.copy)]
    with elsewhere.device(monkeypatch):
        there = moved(model)
        there.model.graphs = True
        runs.append(run(there, elsewhere.put))
    assert runs[1].pop("captured") > 0 == runs[0].pop("captured")
    assert runs[0] == runs[1] and len(runs[0]) == 2 * len(sources) - 3


@pytest.mark.parametrize("family", ["marian", "t5-gated"])
@pytest.mark.parametrize("name", GRAPHS + OTHERS)
def test_the_same_tokens(family, name, monkeypatch):
    model = tiny.seq2seq(family)
    sources = tiny.sources(model, ROWS, 4)
    wanted = model.generate(sources, method(name, model, model, copy.copy), max_new_tokens=CAP, batch_size=SLOTS)
    with elsewhere.device(monkeypatch):
        there = moved(model)
        found = there.generate(sources, method(name, model, there, elsewhere.put), max_new_tokens=CAP, batch_size=SLOTS)
    assert found.sequences == wanted.sequences
    for count in ("drafted", "accepted", "verifier_calls"):
        assert getattr(found.stats, count) == getattr(wanted.stats, count), count


def test_graphs_of_a_few_sets_of_processors_are_kept(monkeypatch):
    """A caller whose settings differ from call to call does not fill the device with graphs."""
    plain, kept = tiny.seq2seq("marian"), set()
    monkeypatch.setattr(static_loop, "Graphs", Captured)
    served = Seq2Seq(copy.copy(plain.model), plain.config, None, copy.deepcopy(plain.generation_config))
    served.model.graphs = True
    for number in range(30):
        served.generation_config.update(suppress_tokens=[5 + number])
        for _ in range(2):
            served.generate([[7, 8, 0]], max_new_tokens=4)
        native = Engine(served.model, Greedy(), 1, served.processors()).native
        assert native.processors == tuple(served.processors())
        kept.add(len(native.graphs.made))
    assert len(native.sets) <= static_loop.SETS and max(kept) <= 2 * static_loop.SETS


@pytest.mark.parametrize("chosen", [Greedy(), Lookup(3), Beam(2)], ids=["greedy", "lookup", "beam"])
def test_under_the_generation_configs_processors(chosen, monkeypatch):
    model = tiny.under_processors(tiny.seq2seq("marian"))
    sources = tiny.sources(model, ROWS, 4)
    wanted = model.generate(sources, chosen, max_new_tokens=CAP, batch_size=SLOTS)
    with elsewhere.device(monkeypatch):
        found = moved(model).generate(sources, chosen, max_new_tokens=CAP, batch_size=SLOTS)
    assert found.sequences == wanted.sequences


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_under_the_generation_configs_processors(family, name, monkeypatch):
    """Each call makes processors of its own; graphs are of the first, and stay."""
    plain, inside = tiny.seq2seq(family), watched(monkeypatch)
    model, sources = tiny.under_processors(plain), tiny.sources(plain, ROWS, 4)
    asked = {"max_new_tokens": CAP, "batch_size": SLOTS, "prompts": [[13, 14][: row % 3] for row in range(ROWS)]}
    chosen = method(name, model, model, copy.copy)
    wanted = [served.generate(sources, chosen, **asked).sequences for served in (model, plain)]
    assert wanted[0] != wanted[1]

    monkeypatch.setattr(static_loop, "Graphs", Captured)
    with elsewhere.device(monkeypatch):
        put = elsewhere.put(model.model)
        put.graphs = True
        there = [Seq2Seq(put, model.config, None, one.generation_config) for one in (model, plain)]
        chosen = method(name, model, there[0], elsewhere.put)
        for _ in range(3):
            assert [served.generate(sources, chosen, **asked).sequences for served in there] == wanted
        graphs = Engine(put, chosen, SLOTS).native.graphs
    assert 0 < graphs.captured < graphs.replayed and not graphs.failed
    assert [reads for reads, _ in inside] == [[]] * len(inside)
    # Each processor's ids, and with sequences their biases, once, before anything is captured.
    assert sum(len(copies) for _, copies in inside) == 10


def test_the_comparison_with_greedy(monkeypatch):
    model = tiny.seq2seq("marian")
    sources = tiny.sources(model, ROWS, 4)
    with elsewhere.device(monkeypatch):
        there = moved(model)
        limits = {"batch_size": SLOTS, "max_new_tokens": CAP}
        lossless = compare_with_greedy(there, sources, Lookup(3), **limits)
        relaxed = compare_with_greedy(there, sources, method("relaxed", model, there, elsewhere.put), **limits)
    assert not lossless.divergences and relaxed.bugs


def test_the_device_refuses_what_a_gpu_refuses(monkeypatch):
    with elsewhere.device(monkeypatch) as device:
        there = torch.arange(3, device=device)
        with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
            there + torch.ones(3)
        assert not elsewhere.reads + elsewhere.copies
        assert (there + torch.tensor(1)).tolist() == [1, 2, 3] and int(there[1]) == 1
        assert there[there > 1].tolist() == [2]
        assert elsewhere.reads == ["tolist", "_local_scalar_dense", "index", "tolist"]
        assert there.cpu().sum() == torch.tensor([3], device=device).to("cpu")[0]
        assert elsewhere.copies == ["_to_copy", "tensor", "_to_copy"]


def test_a_graph_does_the_same_again_and_nothing_when_it_is_captured(monkeypatch):
    with elsewhere.device(monkeypatch) as device:
        state, factor = torch.ones(3, device=device), 2.0

        def step():
            doubled = state * factor
            state[1:] = doubled[1:] + 1
            return doubled

        graph, factor = elsewhere.Graph(step), 5.0
        assert state.tolist() == [1, 1, 1]
        graph.replay()
        assert state.tolist() == [1, 3, 3] and graph.result.tolist() == [2, 2, 2]
        graph.replay()
        assert state.tolist() == [1, 7, 7] and graph.result.tolist() == [2, 6, 6]
        for waits in (lambda: state.tolist(), lambda: int(state[0]), lambda: torch.tensor([1], device=device)):
            with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
                elsewhere.Graph(waits)
        assert state.tolist() == [1, 7, 7]
