"""Copies of what followed the last tokens where they occurred before: drafts without a second model."""

from ctypes import addressof, c_int64
from dataclasses import dataclass

import torch
from torch import Tensor

from spec2seq.config import check_range
from spec2seq.decoding.acceptance import Draft
from spec2seq.decoding.rows import Rows
from spec2seq.decoding.sampling import Sampling
from spec2seq.kernels import library as c
from spec2seq.models.encoder_decoder import Decoded, Encoded, EncoderDecoder
from spec2seq.models.native import call


@dataclass(frozen=True)
class NgramLookup:
    """Copies what followed the last n tokens where they occurred before, in the output or in the source.

    The longest n-gram wins; among equals the latest occurrence, the output's before the source's (prompt lookup
    and input-guided aggressive decoding).
    """

    max_matching_ngram_size: int = 3
    min_matching_ngram_size: int = 1

    has_confidence = False
    hidden_layers = ()
    longest = None
    longest_source = None

    def __post_init__(self):
        check_range("min_matching_ngram_size", self.min_matching_ngram_size, low=1)
        check_range("max_matching_ngram_size", self.max_matching_ngram_size, low=self.min_matching_ngram_size)

    def session(self, rows: Rows, verifier: EncoderDecoder) -> "LookupSession":
        a = verifier.architecture
        shared = a.source_vocabulary is None and a.sound is None
        return LookupSession(self, rows, shared, verifier.native is not None)


class LookupSession:
    """Stateless: everything is in the rows. Source and output lie behind one another in one haystack. The source is
    left out unless `shared`: both are of one vocabulary. `native`: the compiled executor is there."""

    def __init__(self, drafter: NgramLookup, rows: Rows, shared: bool, native: bool):
        self.drafter, self.rows, self.shared = drafter, rows, shared
        self.drafts_natively = native and rows.tokens.device.type == "cpu"
        self.reads_rows = True
        self.asked, self.drafted, self.counts = c.Lookup(), (c_int64 * 0)(), (c_int64 * rows.slots)()

    def admit(self, first_slot: int, encoded: Encoded) -> None:
        pass

    def commit(self, counts: list[int], decoded: Decoded | None) -> None:
        pass

    def move(self, source: int, target: int) -> None:
        pass

    def draft(self, k: int, room: Tensor, confidence: float | None, sampling: Sampling | None) -> Draft:
        return self._draft_native(k, room) if self.drafts_natively else self._draft_over_tensors(k, room)

    def describe(self, k: int, confidence: float | None, furthest: int) -> c.Lookup:
        """Tell the compiled executor where the rows lie, and where it may write drafts of k tokens."""
        rows, to = self.rows, self.asked
        if len(self.drafted) < rows.slots * k:
            self.drafted = (c_int64 * (rows.slots * k))()
        to.rows, to.k = rows.count, k
        to.longest, to.shortest = self.drafter.max_matching_ngram_size, self.drafter.min_matching_ngram_size
        to.source = rows.source_tokens.data_ptr() if self.shared else None
        to.source_stride, to.token_stride = rows.source_tokens.stride(0), rows.tokens.stride(0)
        to.source_lengths, to.tokens = rows.source_lengths.data_ptr(), rows.tokens.data_ptr()
        to.lengths, to.limits = rows.lengths.data_ptr(), rows.limits.data_ptr()
        to.drafted, to.counts = addressof(self.drafted), addressof(self.counts)
        return to

    def catch_up(self) -> None:
        """To be called after iterations in the compiled executor."""

    def _draft_native(self, k: int, room: Tensor) -> Draft:
        n, asked = self.rows.count, self.describe(k, None, self.rows.horizon)
        call("spec2seq_lookup", asked)
        counts = torch.minimum(torch.tensor(self.counts[:n]), room.clamp(min=0))
        return Draft(torch.tensor(self.drafted[: n * k]).view(n, k)[:, : asked.width], counts)

    def _draft_over_tensors(self, k: int, room: Tensor) -> Draft:
        rows = self.rows
        n, lengths = rows.count, rows.lengths[: rows.count]
        longest, source_width = max(rows.host_lengths[:n]), rows.source_horizon if self.shared else 0
        hay = rows.tokens[:n, :longest]
        if self.shared:
            hay = torch.cat([rows.source_tokens[:n, :source_width], hay], 1)
        end = source_width + lengths  # one past the last token of each row's output
        place = torch.arange(hay.shape[1], device=hay.device)
        in_source = place < rows.source_lengths[:n, None].clamp(max=source_width)
        known = in_source | ((place >= source_width) & (place < end[:, None]))
        # match[p]: how many tokens before place p equal the output's last ones, counted from the end.
        match = torch.zeros_like(hay)
        running = torch.ones_like(known)
        for back in range(1, self.drafter.max_matching_ngram_size + 1):
            suffix = hay.gather(1, (end - back).clamp(min=0)[:, None])
            equal = torch.zeros_like(known)
            equal[:, back:] = (hay[:, :-back] == suffix) & known[:, :-back]
            # The decoder start token is no part of a pattern, nor does one straddle source and output.
            equal &= (lengths > back)[:, None] & ((place < source_width) | (place - back > source_width))
            running = running & equal
            match += running
        match = torch.where(known & (match >= self.drafter.min_matching_ngram_size), match, 0)
        best, _ = match.max(1)
        latest = torch.where((match == best[:, None]) & (best > 0)[:, None], place, -1).amax(1)
        from_source = latest < source_width
        stop = torch.where(from_source, rows.source_lengths[:n], end)
        length = torch.where(latest >= 0, torch.minimum(stop - latest, room).clamp(min=0, max=k), 0)
        where = latest.clamp(min=0)[:, None] + torch.arange(k, device=hay.device)
        tokens = hay.gather(1, where.clamp(max=hay.shape[1] - 1))
        width = int(length.max()) if hay.device.type == "cpu" else k
        return Draft(tokens[:, :width], length)
