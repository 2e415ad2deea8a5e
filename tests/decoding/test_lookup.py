"""The lookup drafter on hand-made rows, and what a little model's session feeds."""

import pytest
import tiny
import torch

from spec2seq import FixedLength, LittleModel, NgramLookup, Speculative, UsageError
from spec2seq.decoding.loop import Engine
from spec2seq.decoding.rows import Rows

START, EOS, PAD = 1, 2, 0


def proposed(source: list[int], output: list[int], k: int = 4, room: int = 99, **sizes) -> list[int]:
    """What is drafted after `output` (without the decoder start)."""
    rows = Rows(2, START, EOS, PAD, torch.device("cpu"))
    rows.admit(torch.tensor([source]), torch.tensor([len(source)]), [50], [0])
    rows.reserve(60)
    rows.tokens[0, 1 : 1 + len(output)] = torch.tensor(output)
    rows.lengths[0] += len(output)
    rows.host_lengths[0] += len(output)
    draft = NgramLookup(**sizes).session(rows, None).draft(k, torch.tensor([room]), None, None)
    return draft.tokens[0, : int(draft.lengths[0])].tolist()


@pytest.mark.parametrize(
    ("source", "output", "expected"),
    [
        ([10, 11, 12, 13, EOS], [5, 11], [12, 13, EOS]),  # from the source
        ([10, 11, 12, EOS], [11, 30, 31, 11], [30, 31, 11]),  # the output before the source
        ([10, 11, 12, 20, 11, 13, EOS], [5, 20, 11], [13, EOS]),  # the longest match, not the first
        ([11, 12, 9, 11, 13, EOS], [5, 11], [13, EOS]),  # the latest among equals
        ([10, EOS], [5, 6, 7], []),  # nothing to copy
        ([10, 11, EOS], [EOS, 9, 10], [11, EOS]),
        ([START, 40, EOS], [], []),  # the decoder start is no pattern
        ([10, 5, EOS], [6, 7, EOS], []),  # source and output are two texts: nothing follows the source's end
    ],
)
def test_what_is_copied(source, output, expected):
    assert proposed(source, output) == expected


def test_k_and_room_bound_the_draft():
    source = list(range(10, 30))
    assert proposed(source, [10], k=3) == [11, 12, 13]
    assert proposed(source, [10], k=3, room=2) == [11, 12]
    assert proposed(source, [10], k=3, room=0) == []


def test_a_shortest_match_can_be_asked_for():
    source = [10, 11, 12, EOS]
    assert proposed(source, [5, 10], min_matching_ngram_size=2) == []
    assert proposed(source, [10, 11], min_matching_ngram_size=2) == [12, EOS]
    with pytest.raises(UsageError, match="max_matching_ngram_size"):
        NgramLookup(max_matching_ngram_size=1, min_matching_ngram_size=2)


def _length(pair) -> int:
    return len(pair[0])


class _Spy(torch.nn.Module):
    """A model that remembers how wide each block was."""

    def __init__(self, model):
        super().__init__()
        self.inner, self.widths = model, []
        self.architecture, self.device, self.encode, self.admit, self.new_cache = (
            model.architecture, model.device, model.encode, model.admit, model.new_cache,
        )  # fmt: skip

    def decode_block(self, cache, tokens, *rest, **more):
        self.widths.append(tokens.shape[1])
        return self.inner.decode_block(cache, tokens, *rest, **more)


def widths(model, little, k: int) -> list[list[int]]:
    """For each draft of one row, the widths of the little model's passes."""
    spy = _Spy(little)
    engine = Engine(model.model, Speculative(LittleModel(spy), FixedLength(k)), 1)
    sources = tiny.sources(model, 12)
    engine.submit(
        max(zip(model.generate(sources, max_new_tokens=20).sequences, sources, strict=True), key=_length)[1], 20
    )
    found = []
    while engine.busy:
        before = len(spy.widths)
        engine.step()
        found.append(spy.widths[before:])
    return [passes for passes in found if passes]


def test_after_a_draft_that_stood_whole_two_tokens_are_fed():
    """The last drafted token was never fed: the classic gap in a drafter's cache."""
    model = tiny.seq2seq("t5-gated")
    found = widths(model, model.model, k=3)  # the drafter is the verifier: it is always right
    assert len(found) > 2
    assert found[0] == [1, 1, 1]
    assert all(passes[0] == 2 and set(passes[1:]) <= {1} for passes in found[1:])


def test_after_a_rejection_one_token_is_fed():
    model = tiny.seq2seq("bart")
    never_right = tiny.seq2seq("bart", seed=2)
    engine = Engine(model.model, Speculative(never_right.drafter(), FixedLength(3)), 1)
    engine.submit(tiny.sources(model, 1)[0], 12)
    rejected_at_once = 0
    spy = engine.session.model = _Spy(never_right.model)
    while engine.busy:
        before, length = len(spy.widths), engine.rows.host_lengths[0]
        engine.step()
        if engine.busy and engine.rows.host_lengths[0] - length == 1 and length:
            rejected_at_once += 1
            engine.step()
            assert spy.widths[before + 3 :][:1] in ([1], [])
    assert rejected_at_once > 1
