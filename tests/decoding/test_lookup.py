"""N-gram lookup on hand-made sources and outputs."""

import pytest
import tiny
import torch

from spec2seq import Lookup, NgramLookup, UsageError
from spec2seq.decoding.lookup import LookupSession
from spec2seq.decoding.rows import Rows
from spec2seq.decoding.scheduler import Request
from spec2seq.models import native

START, EOS, PAD = 0, 1, 2


def draft(
    rows: list[tuple[list[int], list[int]]], k: int = 4, room: list[int] | None = None, longest: int = 3, least=1
):
    """What is proposed for each (source, output so far)."""
    state = Rows(len(rows), START, (EOS,), PAD, torch.device("cpu"))
    sources, _ = tiny.padded([source for source, _ in rows], PAD)
    state.admit(sources, [Request(number, source, 99, 0) for number, (source, _) in enumerate(rows)])
    state.reserve(30)
    state.tokens[:, 1:] = 77  # what an earlier row left behind must never be copied
    for slot, (_, output) in enumerate(rows):
        state.tokens[slot, 1 : 1 + len(output)] = torch.tensor(output, dtype=torch.long)
        state.lengths[slot] = state.host_lengths[slot] = 1 + len(output)
    drafts = []
    for compiled in (False, True) if not native.unavailable() else (False,):
        session = LookupSession(NgramLookup(longest, least), state, shared=True, native=compiled)
        found = session.draft(k, torch.tensor(room or [98] * len(rows)), None, None)
        assert found.tokens.shape[1] <= k
        assert found.calls == 1 and found.probabilities is None and found.unsure is None
        both = zip(found.tokens.tolist(), found.lengths.tolist(), strict=True)
        drafts.append([tokens[:length] for tokens, length in both])
    assert drafts[0] == drafts[-1]
    return drafts[0]


@pytest.mark.parametrize(
    ("name", "source", "output", "expected"),
    [
        ("from the source", [5, 6, 7, 8, 9, EOS], [6], [7, 8, 9, EOS]),
        ("no further than the source", [5, 6, 7, EOS], [6], [7, EOS]),
        ("the last token of the source has nothing behind it", [5, 6, EOS], [EOS], []),
        ("nothing that matches", [5, 6, 7, EOS], [20], []),
        ("nothing written yet", [5, START, 7, EOS], [], []),
        ("from the output", [5, EOS], [10, 11, 12, 13, 10], [11, 12, 13, 10]),
        ("the output runs into itself", [5, EOS], [10, 11, 10, 11], [10, 11]),
        ("the output before the source", [6, 50, 51, EOS], [6, 40, 41, 6], [40, 41, 6]),
        ("the longest n-gram wins", [7, 6, 50, EOS], [9, 6, 40, 7, 6], [50, EOS]),
        ("of three rather than two", [8, 7, 6, 50, EOS, 3, 7, 6, 60, 61], [8, 7, 6], [50, EOS, 3, 7]),
        ("the latest of equals in the source", [6, 40, 6, 41, 6, 42, EOS], [6], [42, EOS]),
        ("the latest of equals in the output", [5, EOS], [6, 40, 6, 41, 6], [41, 6]),
        ("no more than three count", [3, 8, 7, 6, 50, EOS, 9, 7, 6, 51, EOS], [9, 3, 8, 7, 6], [50, EOS, 9, 7]),
        ("a repeated token", [5, EOS], [6, 6, 6], [6]),
    ],
)
def test_by_hand(name, source, output, expected):
    assert draft([(source, output)]) == [expected]


def test_no_pattern_straddles_source_and_output():
    # The source's end and the first output token would be the pair (8, 6); behind it the output has 41.
    assert draft([([5, 8], [6, 41, 9, 8, 6])]) == [[41, 9, 8, 6]]  # by the single token 6
    assert draft([([5, 8], [6, 41, 9, 8, 6])], least=2) == [[]]


def test_the_decoder_start_is_no_part_of_a_pattern():
    # (start, 6) stands in the source and at the start of the output.
    assert draft([([START, 6, 50, EOS, 6, 51], [6])]) == [[51]]
    assert draft([([START, 6, 50, EOS], [6])], least=2) == [[]]
    assert draft([([9, START, EOS], [START])], least=2) == [[]]


@pytest.mark.parametrize(("k", "room", "expected"), [(1, 9, [7]), (2, 9, [7, 8]), (9, 9, [7, 8, 9, 10, EOS]),
                                                     (9, 3, [7, 8, 9]), (9, 1, [7]), (9, 0, [])])  # fmt: skip
def test_k_and_room(k, room, expected):
    assert draft([([5, 6, 7, 8, 9, 10, EOS], [6])], k, [room]) == [expected]


def test_ragged_rows_are_looked_up_alone():
    rows = [
        ([5, 6, 7, 8, 9, 10, 11, EOS], [6]),
        ([6, EOS], [20, 21, 22, 20]),
        ([20, 21, EOS], [9]),
        ([5, EOS], []),
        ([6, 7, 30, EOS], [9, 9, 9, 9, 9, 9, 6, 7]),
    ]
    assert draft(rows) == [draft([row])[0] for row in rows]
    assert draft(rows) == [[7, 8, 9, 10], [21, 22, 20], [], [], [30, EOS]]


def test_longest_and_shortest_n_grams():
    row = ([7, 6, 50, EOS], [9, 6, 40, 7, 6])
    assert draft([row], longest=1) == [[40, 7, 6]]  # one token: the latest
    assert draft([row], longest=2, least=2) == [[50, EOS]]
    assert draft([row], longest=3, least=3) == [[]]


@pytest.mark.parametrize("sizes", [(3, 0), (2, 3)])
def test_sizes_out_of_range(sizes):
    with pytest.raises(UsageError, match="matching_ngram_size"):
        NgramLookup(*sizes)


def test_a_model_that_repeats_itself_is_sped_up():
    model = tiny.seq2seq("t5")
    sources = tiny.sources(model, 10, 3)
    done = model.generate(sources, Lookup(4), max_new_tokens=24)
    assert done.sequences == model.generate(sources, max_new_tokens=24).sequences
    assert done.stats.tokens_per_verifier_call > 1.1
    assert done.stats.drafter_tokens == 0  # nothing was fed to anything
