"""The rows in flight: fixed tensors, one slot a row, slots 0…count-1 in use."""

from collections.abc import Sequence

import torch
from torch import Tensor

from spec2seq.decoding.scheduler import Request, Source

GRAIN = 64


class Rows:
    """Tokens, lengths and limits of the rows in flight, with a host mirror of the lengths.

    `tokens[slot]` starts with a decoder start token and the row's prompt, which are `given[slot]` tokens;
    `lengths[slot]` of them are committed. The last committed token has not been fed to the verifier yet: the next pass
    feeds it, with the draft behind it.
    """

    def __init__(self, slots: int, start: int, ends: tuple[int, ...], pad: int, device: torch.device):
        self.slots, self.start_token_id, self.eos_token_ids, self.pad_token_id = slots, start, ends, pad
        self.count = 0
        self.tokens = torch.full((slots, 0), pad, dtype=torch.long, device=device)
        self.lengths, self.limits, self.seeds, self.source_lengths, self.given = (
            torch.zeros(slots, dtype=torch.long, device=device) for _ in range(5)
        )
        self.source_tokens = torch.full((slots, 0), pad, dtype=torch.long, device=device)
        self.host_lengths = [0] * slots
        self.host_limits = [0] * slots
        self.host_sources = [0] * slots
        self.host_given = [0] * slots

    @property
    def source_horizon(self) -> int:
        """The longest source in flight."""
        return max(self.host_sources[: self.count])

    @property
    def horizon(self) -> int:
        """The most committed tokens of any row in flight."""
        return max(self.host_lengths[: self.count])

    @property
    def room(self) -> int:
        """The most tokens that a draft may have in any row in flight."""
        pairs = zip(self.host_limits[: self.count], self.host_lengths[: self.count], strict=True)
        return max(limit - length for limit, length in pairs) - 1

    @property
    def uniform(self) -> bool:
        """Whether all rows in flight have the same length."""
        return min(self.host_lengths[: self.count]) == self.horizon

    @property
    def opening(self) -> bool:
        """Whether no row in flight has written a token."""
        return self.host_lengths[: self.count] == self.host_given[: self.count]

    def places(self, slot: int) -> tuple[int, int]:
        """How many tokens the row at a slot has, and its source."""
        return self.host_lengths[slot], self.host_sources[slot]

    def ends(self, tokens: Tensor) -> Tensor:
        """Which of the tokens `[...]` end a row."""
        if len(self.eos_token_ids) == 1:
            return tokens == self.eos_token_ids[0]
        return torch.isin(tokens, tokens.new_tensor(self.eos_token_ids))

    def through_end(self, tokens: list[int]) -> list[int]:
        """The tokens up to and with the first that ends a row."""
        end = next((place for place, token in enumerate(tokens, 1) if token in self.eos_token_ids), None)
        return tokens[:end]

    def admit(self, sources: Tensor, requests: Sequence[Request]) -> int:
        """Add a row for each request, with its source in `[rows, length]`, or `[rows, length, 2 * bins]` of sounds;
        returns their first slot."""
        first, rows = self.count, len(requests)
        starts = [self.start_token_id if request.start is None else request.start for request in requests]
        prompts = [(start, *request.prompt) for start, request in zip(starts, requests, strict=True)]
        lengths, given = [len(request.source) for request in requests], [len(prompt) for prompt in prompts]
        limits = [request.max_new_tokens + had for request, had in zip(requests, given, strict=True)]
        new = slice(first, first + rows)
        if self.source_tokens.shape[2:] != sources.shape[2:]:
            self.source_tokens = sources.new_empty(self.slots, 0, *sources.shape[2:])
        self.source_tokens = _at_least(self.source_tokens, sources.shape[1], self.pad_token_id)
        self.reserve(max(given))
        self.source_tokens[new] = self.pad_token_id
        self.source_tokens[new, : sources.shape[1]] = sources
        self.source_lengths[new] = self._column(lengths)
        self.tokens[new, : max(given)] = padded(prompts, self.pad_token_id).to(self.tokens.device)
        self.lengths[new] = self.given[new] = self._column(given)
        self.limits[new] = self._column(limits)
        self.seeds[new] = self._column([request.seed for request in requests])
        self.host_lengths[new], self.host_given[new] = given, given
        self.host_limits[new], self.host_sources[new] = limits, lengths
        self.count += rows
        return first

    def _column(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self.tokens.device)

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in every row."""
        self.tokens = _at_least(self.tokens, length, self.pad_token_id)

    def tokens_from(self, starts: list[int], width: int) -> tuple[Tensor, Tensor]:
        """So many tokens of each row in flight, `[rows, width]`, from its start on, and the starts `[rows]`. Beyond a
        row's length they may be anything: one that is new, with a long prompt, makes them many."""
        self.reserve(max(starts) + width)
        first = torch.tensor(starts, device=self.tokens.device)
        places = first[:, None] + torch.arange(width, device=first.device)
        return self.tokens[: len(starts)].gather(1, places), first

    def append(self, new: list[list[int]]) -> None:
        """Commit the tokens `new[slot]`, at least one for every row in flight; room for them is reserved."""
        n, counts = self.count, [len(tokens) for tokens in new]
        width, device = max(counts), self.tokens.device
        block = torch.tensor([[*tokens, *[self.pad_token_id] * (width - len(tokens))] for tokens in new], device=device)
        if n == 1:
            self.tokens[:1, self.host_lengths[0] : self.host_lengths[0] + width] = block
            self.lengths[:1] += width
        else:
            places = self.lengths[:n, None] + torch.arange(width, device=device)
            self.tokens[:n].scatter_(1, places, block)
            self.lengths[:n] += torch.tensor(counts, device=device)
        for slot, count in enumerate(counts):
            self.host_lengths[slot] += count

    def leave(self, slot: int) -> int:
        """Take the row at `slot` out; returns the slot of the row that now lives there (`slot`: none did)."""
        last = self.count - 1
        if slot != last:
            for tensor in (self.tokens, self.lengths, self.limits, self.seeds, self.source_lengths,
                           self.source_tokens, self.given):  # fmt: skip
                tensor[slot] = tensor[last]
            for mirror in (self.host_lengths, self.host_limits, self.host_sources, self.host_given):
                mirror[slot] = mirror[last]
        self.count = last
        return last


def padded(rows: Sequence[Source], pad: int) -> Tensor:
    """Rows of ids as one tensor `[rows, longest]`; spectrograms, all of one length, `[rows, length, 2 * bins]`."""
    if isinstance(rows[0], Tensor):
        return torch.stack(list(rows))
    tokens = torch.full((len(rows), max(map(len, rows))), pad)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids)
    return tokens


def _at_least(tensor: Tensor, length: int, fill: int) -> Tensor:
    if length <= tensor.shape[1]:
        return tensor
    grown = tensor.new_full((tensor.shape[0], -(-length // GRAIN) * GRAIN, *tensor.shape[2:]), fill)
    grown[:, : tensor.shape[1]] = tensor
    return grown
