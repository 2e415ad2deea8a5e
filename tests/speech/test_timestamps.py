"""The rules and the segments of timestamps are those of Transformers."""

import pytest
import torch
from transformers import GenerationConfig, WhisperForConditionalGeneration
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from spec2seq.decoding.processors import Prefix
from spec2seq.speech.timestamps import TimestampRules, segments

END, SILENT, VOCABULARY, GIVEN = 10, 12, 24, 3
FIRST = SILENT + 1


def outputs(count: int) -> list[list[int]]:
    """Texts with timestamps in all places, most of them such as the rules allow."""
    draws, made = torch.Generator().manual_seed(0), []

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=draws))

    for _ in range(count):
        row, at = [], 0
        for _ in range(draw(0, 4)):
            for _ in range(draw(0, 3)):
                at = min(at + draw(0, 4), VOCABULARY - FIRST - 1)
                row.append(FIRST + at)
            row += [draw(0, END) for _ in range(draw(0, 4))]
        made.append(row)
    return made


@pytest.mark.parametrize("latest", [None, 4])
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_the_rules_of_transformers(scale, latest):
    settings = GenerationConfig(eos_token_id=END)
    settings.no_timestamps_token_id, settings.max_initial_timestamp_index = SILENT, latest
    theirs = WhisperTimeStampLogitsProcessor(settings, begin_index=GIVEN)
    ours, words = TimestampRules(SILENT, END, latest), torch.Generator().manual_seed(1)
    for row in outputs(60):
        logits = scale * torch.randn(1, len(row) + 1, VOCABULARY, generator=words)
        ids = torch.tensor([[11, 11, 11, *row]])
        given = torch.tensor([GIVEN])
        found = ours(logits.clone(), Prefix(ids, given, given + 99, given))
        for place in range(len(row) + 1):
            before = row[:place]
            stamps = [token for token in before if token >= FIRST]
            if stamps != sorted(stamps):
                continue  # a draft was wrong before this place
            assert torch.equal(theirs(ids[:, : GIVEN + place], logits[:, place]), found[:, place]), (row, place)


def test_the_segments_of_transformers():
    kinds = set()
    for row in outputs(300):
        if not row:
            continue
        for places in (11, 7):
            cut = torch.tensor([places])
            wanted, offset = WhisperForConditionalGeneration._retrieve_segment(
                torch.tensor(row), [{}], torch.zeros(1), FIRST, cut, 1.0, 1.0, 1, 0, 0, False, torch.zeros(1, 0)
            )
            found, reached = segments(row, FIRST, places)
            assert reached == offset
            kinds.add((len(wanted) > 1, reached == places))
            # Theirs has the start of what is to be heard again behind its last segment.
            assert [float(part["start"]) for part in wanted] == [start for start, _, _ in found]
            assert [float(part["end"]) for part in wanted] == [end for _, end, _ in found]
            for (_, _, ours), part in zip(found, wanted, strict=True):
                assert part["tokens"].tolist()[: len(ours)] == ours
    assert len(kinds) >= 3


@pytest.mark.parametrize(
    ("said", "found", "reached"),
    [([13, 1, 2, 15, 15, 3, 17], [(0, 2, [13, 1, 2, 15]), (2, 4, [15, 3, 17])], 11),
     ([13, 1, 15, 15, 3], [(0, 2, [13, 1, 15])], 2), ([13, 1, 2], [(0, 11, [13, 1, 2])], 11),
     ([13, 1, 18], [(0, 5, [13, 1, 18])], 11), ([], [(0, 11, [])], 11)],
)  # fmt: skip
def test_segments(said, found, reached):
    assert segments(said, FIRST, 11) == (found, reached)
