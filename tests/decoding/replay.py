"""A drafter that replays known tokens, right or wrong on purpose, and what the loop must make of it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from spec2seq.decoding.acceptance import Draft
from spec2seq.decoding.rows import Rows


@dataclass(frozen=True, eq=False)
class Replay:
    """`scripts` by source: the token it proposes at each place of the output. `rooms` and `commits` record what
    it was told."""

    scripts: dict[tuple[int, ...], list[int]]
    rooms: list[list[int]] = field(default_factory=list)
    commits: list[list[int]] = field(default_factory=list)

    has_confidence = False
    hidden_layers = ()
    longest = longest_source = None

    def session(self, rows: Rows, verifier) -> "ReplaySession":
        return ReplaySession(self, rows)


class ReplaySession:
    """Finds a row's script by its source, so moved rows need no care."""

    def __init__(self, drafter: Replay, rows: Rows):
        self.drafter, self.rows = drafter, rows

    def draft(self, k: int, room: Tensor, confidence, sampling) -> Draft:
        rows, drafts = self.rows, []
        self.drafter.rooms.append(room.tolist())
        for slot, space in enumerate(room.tolist()):
            source = rows.source_tokens[slot, : rows.source_lengths[slot]].tolist()
            place = rows.host_lengths[slot] - 1
            drafts.append(self.drafter.scripts[tuple(source)][place : place + min(k, space)])
        width = max(map(len, drafts))
        tokens = torch.tensor([draft + [3] * (width - len(draft)) for draft in drafts], dtype=torch.long)
        return Draft(tokens.view(len(drafts), width), torch.tensor([len(draft) for draft in drafts]), fed=1)

    def admit(self, first_slot: int, encoded) -> None:
        pass

    def commit(self, counts: list[int], decoded) -> None:
        self.drafter.commits.append(counts)

    def move(self, source: int, target: int) -> None:
        pass


def corrupted(tokens: list[int], places, vocabulary: int) -> list[int]:
    """`tokens` with another token at each of `places`."""
    return [(token + 1) % vocabulary if place in places else token for place, token in enumerate(tokens)]


@dataclass
class Expected:
    """What one row's counts must be when the exact rule judges a script, computed in the plainest way."""

    trace: str = ""
    calls: int = 0
    drafted: int = 0
    accepted: int = 0

    def __init__(self, greedy: list[int], script: list[int], k: int, cap: int, eos: int):
        while len(self.trace) < len(greedy):
            place = len(self.trace)
            draft = script[place : place + min(k, cap - place - 1)]
            stands = 0
            while stands < len(draft) and place + stands < len(greedy) and draft[stands] == greedy[place + stands]:
                stands += 1
            ended = greedy[place : place + stands][-1:] == [eos]
            self.trace += "d" * stands + ("" if ended else "v")
            self.calls += 1
            self.drafted += len(draft)
            self.accepted += stands


class Switching:
    """Drafts that come and go, as those of the adaptive rule do."""

    def __init__(self, lengths):
        self.lengths, self.at = lengths, 0

    def choose(self):
        self.at += 1
        return self.lengths[self.at % len(self.lengths)]

    def observe(self, asked, accepted):
        pass

    filled = observe

    def took(self, k, drafted, seconds, passed):
        pass
