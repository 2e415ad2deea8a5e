"""Iterations in one call of the compiled executor, for the methods that need no more than it knows."""

from typing import NamedTuple

import torch
from torch import Tensor

from spec2seq.decoding.acceptance import Exact, TopBeta
from spec2seq.decoding.cached_blocks import CachedSession
from spec2seq.decoding.drafters import Session
from spec2seq.decoding.methods import Speculative
from spec2seq.decoding.rows import Rows
from spec2seq.kernels import library as c
from spec2seq.models.cache import Cache
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.native import call, places_of

HEAD = 3  # numbers of a row's report before its tokens


class Iterated(NamedTuple):
    """Of every row: how many tokens were drafted and accepted, and what was emitted; the draft `[width][rows]`; the
    drafter's passes, the tokens that every row was fed in them, and the k that was asked for."""

    drafted: list[int]
    accepted: list[int]
    emitted: list[list[int]]
    tokens: list[list[int]]
    calls: int
    fed: int
    asked: int


class NativeLoop:
    """Drafting, verifying, judging and committing for all rows in flight, without Python in between.

    Greedy decoding, and the cached block drafter with an exact or a top-beta rule. `fed` and `pending` are what
    `CachedSession` has by these names.
    """

    def __init__(
        self, verifier: EncoderDecoder, method: Speculative, rows: Rows, cache: Cache, session: Session | None
    ):
        self.rows, self.cache, self.session, self.decoder = rows, cache, session, verifier.native
        self.host_fed = [0] * rows.slots
        self.fed = torch.zeros(rows.slots, dtype=torch.long)
        features, self.longest = 0, 0
        self.iteration = c.Iteration(eos=rows.eos_token_id, beta=1)
        self.iteration.verifier.contents = self.decoder.decoder
        if session is not None:
            self.longest = session.model.shape.block_size
            features = len(session.model.shape.hidden_layers) * verifier.architecture.width
            self.iteration.drafter.contents = session.native.drafter
        if isinstance(method.acceptance, TopBeta):
            self.iteration.beta, self.iteration.tau = method.acceptance.beta, method.acceptance.tau
        self.pending = torch.zeros(rows.slots, self.longest + 2, features)
        self.report = torch.zeros(rows.slots, HEAD + 2 * self.longest + 1, dtype=torch.long)
        self.described: dict[str, Tensor] = {}

    @staticmethod
    def can_run(verifier: EncoderDecoder, method: Speculative, session: Session | None) -> bool:
        """Whether it knows the method, and executor and drafter are compiled ones."""
        if verifier.native is None or not verifier.native.takes(verifier.target_embedding):
            return False
        if type(method.acceptance) not in (Exact, TopBeta) or method.length.confidence is not None:
            return False
        plain = method.verify_tail and method.starts == "drafter"
        return session is None or (plain and isinstance(session, CachedSession) and session.native is not None)

    def admit(self, first_slot: int) -> None:
        """Rows that are new in the slots from `first_slot` on."""
        self.fed[first_slot : self.rows.count] = 0
        self.pending[first_slot : self.rows.count, :1] = 0
        self.host_fed[first_slot : self.rows.count] = [0] * (self.rows.count - first_slot)

    def move(self, source: int, target: int) -> None:
        """As `Session.move`."""
        self.fed[target], self.pending[target] = self.fed[source], self.pending[source]
        self.host_fed[target] = self.host_fed[source]

    def run(self, k: int) -> Iterated:
        """Draft k tokens, or as many as the drafter can; 0: none. Commit what stands."""
        rows, it, n, asked = self.rows, self.iteration, self.rows.count, k
        k = min(k, self.longest)
        horizon, fed = rows.horizon, 0
        rows.reserve(horizon + k + 1)
        self.cache.reserve(horizon + k)
        if self.session is not None:
            fresh = max(have - cached for have, cached in zip(rows.host_lengths[:n], self.host_fed, strict=False))
            if k:
                fed = fresh + k - 1
                self.session.cache.reserve(max(self.host_fed[:n]) + fed)
                self.host_fed[:n] = rows.host_lengths[:n]
            if fresh + k + 1 > self.pending.shape[1]:  # tokens that came without a draft wait for the next
                self.pending = torch.nn.functional.pad(self.pending, (0, 0, 0, fresh + k + 1))
            self._describe("draft_own", self.session.cache.own)
            self._describe("draft_source", self.session.cache.source)
            it.fed, it.pending = self.fed.data_ptr(), self.pending.data_ptr()
            it.pending_stride = self.pending.stride(0)
        self._describe("own", self.cache.own)
        self._describe("source", self.cache.source)
        it.rows, it.k, it.horizon, it.source_horizon = n, k, horizon, rows.source_horizon
        it.tokens, it.token_stride, it.lengths = rows.tokens.data_ptr(), rows.tokens.stride(0), rows.lengths.data_ptr()
        it.limits, it.source_lengths = rows.limits.data_ptr(), rows.source_lengths.data_ptr()
        it.report, it.report_stride = self.report.data_ptr(), self.report.stride(0)
        call("spec2seq_iterate", it)
        report = self.report[:n].tolist()
        for slot, row in enumerate(report):
            rows.host_lengths[slot] += row[2]
        return Iterated(
            [row[0] for row in report], [row[1] for row in report], [row[HEAD : HEAD + row[2]] for row in report],
            [[row[HEAD + k + 1 + place] for row in report] for place in range(k)], int(k > 0), fed, asked,
        )  # fmt: skip

    def _describe(self, name: str, tensor: Tensor) -> None:
        """Tell where keys and values lie; they move when their cache grows."""
        if self.described.get(name) is not tensor:
            self.described[name] = tensor
            setattr(self.iteration, name, places_of(tensor))
