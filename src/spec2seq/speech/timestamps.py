"""When something was said: the rules by which timestamps are written, and the segments that lie between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spec2seq.decoding.processors import Prefix, Rule


@dataclass(frozen=True)
class TimestampRules:
    """Timestamps come in pairs, the end of one segment and the start of the next, do not decrease, and come where they
    are likelier together than any other token; the first token is one (Whisper's `ApplyTimestampRules`).

    Args:
        no_timestamps: the token behind which timestamps begin.
        eos_token_id: all tokens before it are text.
        latest_first: so many timestamps lie before the latest that an output may begin with; None: all.
    """

    no_timestamps: int
    eos_token_id: int
    latest_first: int | None = None

    @property
    def rules(self) -> tuple[Rule, ...]:
        latest = -1 if self.latest_first is None else self.latest_first
        return (Rule("timestamps", ((self.no_timestamps, self.eos_token_id),), value=latest),)

    def __call__(self, logits: Tensor, prefix: Prefix) -> Tensor:
        first, width, device = self.no_timestamps + 1, logits.shape[1], logits.device
        before, written = prefix.before(width), prefix.written(width)
        stamped = prefix.tokens >= first
        last, penultimate = ((written >= back) & stamped.gather(1, (before - back).clamp(min=0)) for back in (1, 2))
        penultimate |= written < 2
        # The latest timestamp before each place: they do not decrease, or else a draft has been wrong before it.
        places = torch.arange(stamped.shape[1], device=device)
        given = 1 if prefix.given is None else prefix.given[:, None]
        latest = torch.where(stamped & (places >= given), prefix.tokens, 0).cummax(1).values
        latest = latest.gather(1, (before - 1).clamp(min=0)).where(written > 0, 0)
        opened, begins = (last & ~penultimate)[:, :, None], (written == 0)[:, :, None]
        earliest = torch.where(latest > 0, latest + ~opened[:, :, 0], 0)
        logits = logits.clone()
        logits[:, :, self.no_timestamps] = -torch.inf
        # A vocabulary is long, so each part of it is gone through as seldom as can be.
        words, special, stamps = logits.tensor_split((self.eos_token_id, first), 2)
        marks = torch.arange(first, logits.shape[2], device=device)
        banned = (last & penultimate)[:, :, None] | (marks < earliest[:, :, None])
        if self.latest_first is not None:
            banned |= begins & (marks > first + self.latest_first)
        stamps.masked_fill_(banned, -torch.inf)
        likeliest = torch.maximum(
            words.amax(-1, True).masked_fill(opened | begins, -torch.inf),
            special.amax(-1, True).masked_fill(begins, -torch.inf),
        )  # fmt: skip
        likelier = stamps.float().logsumexp(-1, True) > likeliest.float()
        words.masked_fill_(opened | begins | likelier, -torch.inf)
        special.masked_fill_(begins | likelier, -torch.inf)
        return logits


def segments(tokens: Sequence[int], first: int, places: int) -> tuple[list[tuple[int, int, list[int]]], int]:
    """What was said in a window of `places` timestamps' length: start and end, in timestamps, and tokens of each
    segment, and how far the window was understood: what was cut off at its end is to be heard again.

    `tokens` are without the end token; timestamps are `first` and what comes behind it.
    """
    stamps = [token >= first for token in tokens]
    cuts = [place for place in range(1, len(tokens)) if stamps[place - 1] and stamps[place]]
    closed = stamps[-2:] == [False, True]  # the last segment has an end, and nothing was said behind it
    if not cuts:
        said = [token - first for token in tokens if token > first]
        return [(0, said[-1] if said else places, list(tokens))], places
    found, begin = [], 0
    for end in [*cuts, len(tokens)] if closed else cuts:
        part = list(tokens[begin:end])
        found.append((part[0] - first, part[-1] - first, part))
        begin = end
    return found, places if closed else tokens[begin - 1] - first
