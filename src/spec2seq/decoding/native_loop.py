"""Iterations in one call of the compiled executor, for the methods that need no more than it knows."""

import ctypes
import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spec2seq.decoding.acceptance import Draft, Exact, Rollback, TopBeta
from spec2seq.decoding.cached_blocks import CachedSession, with_prompts
from spec2seq.decoding.drafters import LittleSession, Session
from spec2seq.decoding.lookup import LookupSession
from spec2seq.decoding.methods import Speculative
from spec2seq.decoding.native_rules import NativeRules
from spec2seq.decoding.processors import Processor
from spec2seq.decoding.rows import Rows
from spec2seq.kernels import library as c
from spec2seq.models.cache import Cache
from spec2seq.models.encoder_decoder import Decoded, EncoderDecoder
from spec2seq.models.native import call, point_to

HEAD = 8  # numbers of a row's report before its tokens: REPORT_HEAD in kernels/state.h
FIELDS = {LittleSession: "little", LookupSession: "lookup"}  # of an iteration, for what drafts in it


class Iterated(NamedTuple):
    """Of every row: how many tokens were drafted and accepted, what was emitted, and whether it ended unverified; the
    draft `[width][rows]`; the drafter's passes for each row and the tokens that it was fed in them; the k that was
    asked for; the verifier's passes, one or none; and whose draft ended because the drafter was unsure."""

    drafted: list[int]
    accepted: list[int]
    emitted: list[list[int]]
    tail: list[int]
    tokens: list[list[int]]
    calls: list[int]
    fed: list[int]
    asked: int
    passes: int
    unsure: list[int]


class NativeLoop:
    """Drafting, verifying, judging and committing for all rows in flight, without Python in between; many times on end
    where drafts are made by nothing outside.

    Greedy decoding, and drafts with an exact, a top-beta or a rollback rule. The cached block drafter, a little model
    and n-gram lookup draft within the same call (`drafts`), other drafters before it, if they need no states of the
    verifier. `fed` and `pending` are what `CachedSession` has by these names.
    """

    several = True  # iterations in one call
    ragged = True  # a pass has of each row what was drafted for it
    settled = True  # what an iteration took is what the next one will

    def __init__(
        self, verifier: EncoderDecoder, method: Speculative, rows: Rows, cache: Cache, session: Session | None,
        processors: Sequence[Processor] = (),
    ):  # fmt: skip
        self.rows, self.cache, self.decoder = rows, cache, verifier.native
        self.cached = session if isinstance(session, CachedSession) else None
        field = FIELDS.get(type(session))
        self.giver = session if field and session.drafts_natively and method.starts == "drafter" else None
        self.field, self.confidence = field, method.length.confidence
        self.drafts = session is self.cached or self.giver is not None
        self.session = session
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
        self.rules = NativeRules(processors) if processors else None
        self.blank = torch.zeros(0, dtype=torch.float32)  # whatever PyTorch's default is: C writes it
        self.pending = self.blank.new_zeros(rows.slots, self.longest + 2, features)
        self.report = torch.zeros(rows.slots, HEAD + 2 * self.longest + 1, dtype=torch.long)
        self.pointed: dict[str, Tensor] = {}
        self.spent: float | None = None  # seconds of the last run but for what comes once a row; None: not known

    @staticmethod
    def can_run(
        verifier: EncoderDecoder, method: Speculative, session: Session | None, processors: Sequence[Processor] = ()
    ) -> bool:
        """Whether it knows the method and the processors, and the executor is the compiled one."""
        rule = method.acceptance
        if verifier.native is None or not verifier.native.takes(verifier.target_embedding):
            return False
        if not NativeRules.known(processors, verifier.architecture.vocabulary):
            return False
        if type(rule) not in (Exact, TopBeta, Rollback) or rule.sampling or getattr(rule, "needs_distributions", False):
            return False
        if isinstance(session, CachedSession):
            plain = method.verify_tail and method.starts == "drafter" and method.length.confidence is None
            return plain and session.native is not None
        return session is None or not method.drafter.hidden_layers

    @property
    def seconds(self) -> dict[str, float]:
        """What all iterations of the last call took, by phase."""
        return dict(zip(("draft", "verify", "judge"), self.iteration.seconds, strict=True))

    def admit(self, first_slot: int) -> None:
        """Rows that are new in the slots from `first_slot` on."""
        self.fed[first_slot : self.rows.count] = 0
        self.pending[first_slot : self.rows.count, :1] = 0

    def prompted(self, first_slot: int, decoded: Decoded) -> None:
        """As `Session.prompted`."""
        if self.cached is not None:
            self.pending = with_prompts(self.pending, first_slot, self.cached.features(decoded))

    def move(self, source: int, target: int) -> None:
        """As `Session.move`."""
        self.fed[target], self.pending[target] = self.fed[source], self.pending[source]

    def run(self, k: int, most: int = 1) -> Iterator[Iterated]:
        """Draft k tokens, or as many as drafter and rows allow; 0: none. Commit what stands.

        `most` such iterations, fewer where a row ends. The rows' host lengths are those of the iteration that was
        yielded last.
        """
        asked, it = k, self.iteration
        it.given = it.little = it.lookup = None
        started = time.perf_counter()
        if self.giver is None:
            k = min(k, self.longest)
            if k:
                self.cached.read_sources()
        else:
            k = min(k, self.rows.room)  # further passes would be for nothing
            if k:
                most = most if self.giver.reads_rows else 1
                self.rows.reserve(self._furthest(k, most) + k + 1)
                described = self.giver.describe(k, self.confidence, self._furthest(k, most))
                setattr(it, self.field, ctypes.pointer(described))
        reading = time.perf_counter() - started  # sources of new rows, above all
        if self.cached is not None:
            self._make_room(k, most)
        reports = self._call(k, most)
        self.spent = sum(it.seconds)
        it.seconds[0] += reading
        if self.giver is not None and k:
            self.giver.catch_up()
        for report in reports:
            yield self._commit(report, asked)

    def _make_room(self, k: int, most: int) -> None:
        """For what the cached drafter keeps in `most` iterations; tokens that came without a draft wait for one."""
        it, n = self.iteration, self.rows.count
        fresh = max(have - read for have, read in zip(self.rows.host_lengths[:n], self.fed.tolist(), strict=False))
        fresh = max(fresh, k + 1) if k else fresh + most - 1
        if k:
            self.cached.cache.reserve(self._furthest(k, most) + fresh + k)
        if fresh + k + 1 > self.pending.shape[1]:
            self.pending = torch.nn.functional.pad(self.pending, (0, 0, 0, fresh + k + 1))
        point_to(it, "draft_own", self.cached.cache.own, self.pointed)
        point_to(it, "draft_source", self.cached.cache.source, self.pointed)
        it.fed, it.pending = self.fed.data_ptr(), self.pending.data_ptr()
        it.pending_stride = self.pending.stride(0)

    def _furthest(self, k: int, most: int) -> int:
        """The most tokens that a row can have when the last of the iterations begins."""
        rows = self.rows
        return min(rows.horizon + (most - 1) * (k + 1), max(rows.host_limits[: rows.count]))

    def judge(self, draft: Draft) -> Iterated:
        """Commit what stands of a draft that was made outside."""
        it, tokens = self.iteration, draft.tokens.to("cpu", torch.long).contiguous()
        lengths = draft.lengths.to("cpu", torch.long)
        it.little = it.lookup = None
        it.given, it.given_stride, it.given_lengths = tokens.data_ptr(), draft.width, lengths.data_ptr()
        (report,) = self._call(draft.width, 1)
        self.spent = None  # the draft took longer
        done = self._commit(report, draft.asked)
        self.session.commit([len(new) for new in done.emitted], None)
        unsure = [0] * self.rows.count if draft.unsure is None else draft.unsure.tolist()
        return done._replace(calls=draft.by_row(draft.calls), fed=draft.by_row(draft.fed), unsure=unsure)

    def _call(self, k: int, most: int) -> list[list[list[int]]]:
        """What the call reports of every iteration and row."""
        rows, it, n, furthest = self.rows, self.iteration, self.rows.count, self._furthest(k, most)
        rows.reserve(furthest + k + 1)
        self.cache.reserve(furthest + k)
        if self.report.shape[0] < most * n or self.report.shape[1] < HEAD + 2 * k + 1:
            self.report = torch.zeros(most * rows.slots, HEAD + 2 * k + 1, dtype=torch.long)
        point_to(it, "own", self.cache.own, self.pointed)
        point_to(it, "source", self.cache.source, self.pointed)
        it.rows, it.k, it.horizon, it.source_horizon, it.most = n, k, rows.horizon, rows.source_horizon, most
        it.tokens, it.token_stride, it.lengths = rows.tokens.data_ptr(), rows.tokens.stride(0), rows.lengths.data_ptr()
        it.limits, it.source_lengths = rows.limits.data_ptr(), rows.source_lengths.data_ptr()
        it.eos = rows.eos_token_ids[0]
        if self.rules is not None:
            it.rules = self.rules.over(rows.tokens, rows.limits, rows.given)
            if it.trusts_ends:
                self._make_blank(self.decoder.vocabulary + furthest + k)
        it.report, it.report_stride = self.report.data_ptr(), self.report.stride(0)
        call("spec2seq_iterate", it)
        report = self.report[: it.ran * n].tolist()
        return [report[start : start + n] for start in range(0, len(report), n)]

    def _make_blank(self, numbers: int) -> None:
        if len(self.blank) < numbers:
            self.blank = self.blank.new_zeros(numbers)
            self.iteration.blank = self.blank.data_ptr()

    def _commit(self, report: list[list[int]], asked: int) -> Iterated:
        """What every row's report says, in its order: see REPORT_HEAD."""
        width = report[0][7]
        for slot, row in enumerate(report):
            self.rows.host_lengths[slot] += row[2]
        return Iterated(
            [row[0] for row in report], [row[1] for row in report], [row[HEAD : HEAD + row[2]] for row in report],
            [row[3] for row in report], [[row[HEAD + width + 1 + place] for row in report] for place in range(width)],
            [row[5] for row in report], [row[6] for row in report], asked, int(not all(row[3] for row in report)),
            [row[4] for row in report],
        )  # fmt: skip
