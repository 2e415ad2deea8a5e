"""Iterations in one call of the compiled executor, for the methods that need no more than it knows."""

import ctypes
import math
import time
from typing import NamedTuple

import torch
from torch import Tensor

from spec2seq.decoding.acceptance import Draft, Exact, Rollback, TopBeta
from spec2seq.decoding.cached_blocks import CachedSession
from spec2seq.decoding.drafters import LittleSession, Session
from spec2seq.decoding.lookup import LookupSession
from spec2seq.decoding.methods import Speculative
from spec2seq.decoding.rows import Rows
from spec2seq.kernels import library as c
from spec2seq.models.cache import Cache
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.native import call, point_to

HEAD = 4  # numbers of a row's report before its tokens
FIELDS = {LittleSession: "little", LookupSession: "lookup"}  # of an iteration, for what drafts in it


class Iterated(NamedTuple):
    """Of every row: how many tokens were drafted and accepted, what was emitted, and whether it ended unverified; the
    draft `[width][rows]`; the drafter's passes, the tokens that every row was fed in them, and the k that was asked
    for; the verifier's passes, one or none; and whose draft ended because the drafter was unsure."""

    drafted: list[int]
    accepted: list[int]
    emitted: list[list[int]]
    tail: list[int]
    tokens: list[list[int]]
    calls: int
    fed: int
    asked: int
    passes: int
    unsure: list[int]


class NativeLoop:
    """Drafting, verifying, judging and committing for all rows in flight, without Python in between.

    Greedy decoding, and drafts with an exact, a top-beta or a rollback rule. The cached block drafter, a little model
    and n-gram lookup draft within the same call (`drafts`), other drafters before it, if they need no states of the
    verifier. `fed` and `pending` are what `CachedSession` has by these names.
    """

    def __init__(
        self, verifier: EncoderDecoder, method: Speculative, rows: Rows, cache: Cache, session: Session | None
    ):
        self.rows, self.cache, self.decoder = rows, cache, verifier.native
        self.cached = session if isinstance(session, CachedSession) else None
        field = FIELDS.get(type(session))
        self.giver = session if field and session.drafts_natively and method.starts == "drafter" else None
        self.field, self.confidence = field, method.length.confidence
        self.drafts = session is self.cached or self.giver is not None
        self.other = None if session is self.cached else session
        self.host_fed = [0] * rows.slots
        self.fed = torch.zeros(rows.slots, dtype=torch.long)
        features, self.longest = 0, 0
        self.iteration = c.Iteration(beta=1, rollback=-1.0, trusts_ends=session is not None and not method.verify_tail)
        self.iteration.verifier.contents = self.decoder.decoder
        if self.cached is not None:
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
        self.pointed: dict[str, Tensor] = {}

    @staticmethod
    def can_run(verifier: EncoderDecoder, method: Speculative, session: Session | None) -> bool:
        """Whether it knows the method, and the executor is the compiled one."""
        rule = method.acceptance
        if verifier.native is None or not verifier.native.takes(verifier.target_embedding):
            return False
        if type(rule) not in (Exact, TopBeta, Rollback) or rule.sampling or getattr(rule, "needs_distributions", False):
            return False
        if isinstance(session, CachedSession):
            plain = method.verify_tail and method.starts == "drafter" and method.length.confidence is None
            return plain and session.native is not None
        return session is None or not method.drafter.hidden_layers

    @property
    def seconds(self) -> dict[str, float]:
        """What the last iteration took, by phase."""
        return dict(zip(("draft", "verify", "judge"), self.iteration.seconds, strict=True))

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
        """Draft k tokens, or as many as drafter and rows allow; 0: none. Commit what stands."""
        if self.giver is not None:
            return self._run_giver(k)
        rows, n, it, asked, fed = self.rows, self.rows.count, self.iteration, k, 0
        k = min(k, self.longest)
        if self.cached is not None:
            fresh = max(have - cached for have, cached in zip(rows.host_lengths[:n], self.host_fed, strict=False))
            if k:
                fed = fresh + k - 1
                self.cached.cache.reserve(max(self.host_fed[:n]) + fed)
                self.host_fed[:n] = rows.host_lengths[:n]
            if fresh + k + 1 > self.pending.shape[1]:  # tokens that came without a draft wait for the next
                self.pending = torch.nn.functional.pad(self.pending, (0, 0, 0, fresh + k + 1))
            point_to(it, "draft_own", self.cached.cache.own, self.pointed)
            point_to(it, "draft_source", self.cached.cache.source, self.pointed)
            it.fed, it.pending = self.fed.data_ptr(), self.pending.data_ptr()
            it.pending_stride = self.pending.stride(0)
        return self._commit(self._call(k), int(k > 0), fed, asked, [0] * n)

    def _run_giver(self, k: int) -> Iterated:
        """The same with a drafter whose drafts are like given ones."""
        it, rows, asked = self.iteration, self.rows, k
        k = min(k, rows.room)  # further passes would be for nothing
        it.given = it.little = it.lookup = None
        if not k:
            return self._commit(self._call(0), 0, 0, asked, [0] * rows.count)
        rows.reserve(rows.horizon + k + 1)
        started = time.perf_counter()
        setattr(it, self.field, ctypes.pointer(self.giver.describe(k, self.confidence)))
        reading = time.perf_counter() - started  # sources of new rows, above all
        report = self._call(k)
        it.seconds[0] += reading
        calls, fed, unsure = self.giver.described()
        return self._commit(report, calls, fed, asked, unsure)

    def judge(self, draft: Draft) -> Iterated:
        """Commit what stands of a draft."""
        it, tokens = self.iteration, draft.tokens.to("cpu", torch.long).contiguous()
        lengths = draft.lengths.to("cpu", torch.long).clamp(0, draft.width)  # whatever a drafter gives
        it.little = it.lookup = None
        it.given, it.given_stride, it.given_lengths = tokens.data_ptr(), draft.width, lengths.data_ptr()
        unsure = [0] * self.rows.count if draft.unsure is None else draft.unsure.tolist()
        return self._commit(self._call(draft.width), draft.calls, draft.fed, draft.asked, unsure)

    def _call(self, k: int) -> list[list[int]]:
        """What the call reports of every row. The iteration's own k is then the width of the draft."""
        rows, it, n, horizon = self.rows, self.iteration, self.rows.count, self.rows.horizon
        rows.reserve(horizon + k + 1)
        self.cache.reserve(horizon + k)
        if self.report.shape[1] < HEAD + 2 * k + 1:
            self.report = torch.zeros(rows.slots, HEAD + 2 * k + 1, dtype=torch.long)
        point_to(it, "own", self.cache.own, self.pointed)
        point_to(it, "source", self.cache.source, self.pointed)
        it.rows, it.k, it.horizon, it.source_horizon = n, k, horizon, rows.source_horizon
        it.tokens, it.token_stride, it.lengths = rows.tokens.data_ptr(), rows.tokens.stride(0), rows.lengths.data_ptr()
        it.limits, it.source_lengths, it.eos = rows.limits.data_ptr(), rows.source_lengths.data_ptr(), rows.eos_token_id
        it.report, it.report_stride = self.report.data_ptr(), self.report.stride(0)
        call("spec2seq_iterate", it)
        return self.report[:n].tolist()

    def _commit(self, report: list[list[int]], calls: int, fed: int, asked: int, unsure: list[int]) -> Iterated:
        k, rows = self.iteration.k, self.rows
        for slot, row in enumerate(report):
            rows.host_lengths[slot] += row[2]
        if self.other is not None:
            self.other.commit([row[2] for row in report], None)
        return Iterated(
            [row[0] for row in report], [row[1] for row in report], [row[HEAD : HEAD + row[2]] for row in report],
            [row[3] for row in report], [[row[HEAD + k + 1 + place] for row in report] for place in range(k)],
            calls, fed, asked, self.iteration.passes, unsure,
        )  # fmt: skip
