"""Iterations in one call of the compiled executor, for the methods that need no more than it knows."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from spec2seq.decoding.acceptance import Draft, Exact, Rollback, TopBeta
from spec2seq.decoding.cached_blocks import CachedSession
from spec2seq.decoding.drafters import Session
from spec2seq.decoding.methods import Speculative
from spec2seq.decoding.rows import Rows
from spec2seq.kernels import library as c
from spec2seq.models.cache import Cache
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.native import call, places_of

HEAD = 4  # numbers of a row's report before its tokens


class Iterated(NamedTuple):
    """Of every row: how many tokens were drafted and accepted, what was emitted, and whether it ended unverified; the
    draft `[width][rows]`; the drafter's passes, the tokens that every row was fed in them, and the k that was asked
    for; the verifier's passes, one or none."""

    drafted: list[int]
    accepted: list[int]
    emitted: list[list[int]]
    tail: list[int]
    tokens: list[list[int]]
    calls: int
    fed: int
    asked: int
    passes: int


class NativeLoop:
    """Drafting, verifying, judging and committing for all rows in flight, without Python in between.

    Greedy decoding, and any drafter that needs no states of the verifier, with an exact, a top-beta or a rollback rule.
    The cached block drafter drafts within the same call (`drafts`); `fed` and `pending` are what `CachedSession` has by
    these names. The others draft before.
    """

    def __init__(
        self, verifier: EncoderDecoder, method: Speculative, rows: Rows, cache: Cache, session: Session | None
    ):
        self.rows, self.cache, self.decoder = rows, cache, verifier.native
        self.drafts = session is None or isinstance(session, CachedSession)
        self.session = session if self.drafts else None
        self.host_fed = [0] * rows.slots
        self.fed = torch.zeros(rows.slots, dtype=torch.long)
        features, self.longest = 0, 0
        self.iteration = c.Iteration(
            eos=rows.eos_token_id, beta=1, rollback=-1.0, trusts_ends=not (self.drafts or method.verify_tail)
        )
        self.iteration.verifier.contents = self.decoder.decoder
        if self.session is not None:
            self.longest = session.model.shape.block_size
            features = len(session.model.shape.hidden_layers) * verifier.architecture.width
            self.iteration.drafter.contents = session.native.drafter
        rule = method.acceptance
        if isinstance(rule, TopBeta):
            self.iteration.beta, self.iteration.tau = rule.beta, rule.tau
        elif isinstance(rule, Rollback):
            self.iteration.rollback = math.inf if rule.threshold is None else rule.threshold
        self.pending = torch.zeros(rows.slots, self.longest + 2, features)
        self.report = torch.zeros(rows.slots, HEAD + 2 * self.longest + 1, dtype=torch.long)
        self.described: dict[str, Tensor] = {}

    @staticmethod
    def can_run(verifier: EncoderDecoder, method: Speculative, session: Session | None) -> bool:
        """Whether it knows the method, and the executor is the compiled one."""
        rule = method.acceptance
        if verifier.native is None or not verifier.native.takes(verifier.target_embedding):
            return False
        if type(rule) not in (Exact, TopBeta, Rollback) or rule.sampling or getattr(rule, "needs_distributions", False):
            return False
        if isinstance(session, CachedSession):
            return session.native is not None and method.verify_tail and method.length.confidence is None
        return session is None or not method.drafter.hidden_layers

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
        k, fed = min(k, self.longest), 0
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
        return self._iterate(k, int(k > 0), fed, asked)

    def judge(self, draft: Draft) -> Iterated:
        """Commit what stands of a draft."""
        tokens, lengths = draft.tokens.contiguous(), draft.lengths.contiguous()
        self.iteration.given, self.iteration.given_lengths = tokens.data_ptr(), lengths.data_ptr()
        return self._iterate(draft.width, draft.calls, draft.fed, draft.asked)

    def _iterate(self, k: int, calls: int, fed: int, asked: int) -> Iterated:
        rows, it, n, horizon = self.rows, self.iteration, self.rows.count, self.rows.horizon
        rows.reserve(horizon + k + 1)
        self.cache.reserve(horizon + k)
        if self.report.shape[1] < HEAD + 2 * k + 1:
            self.report = torch.zeros(rows.slots, HEAD + 2 * k + 1, dtype=torch.long)
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
            [row[3] for row in report], [[row[HEAD + k + 1 + place] for row in report] for place in range(k)],
            calls, fed, asked, it.passes,
        )  # fmt: skip

    def _describe(self, name: str, tensor: Tensor) -> None:
        """Tell where keys and values lie; they move when their cache grows."""
        if self.described.get(name) is not tensor:
            self.described[name] = tensor
            setattr(self.iteration, name, places_of(tensor))
