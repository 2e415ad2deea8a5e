"""Drafters propose tokens. They can be slow or wrong, never make the output wrong: that is the rule's job.

A drafter is immutable and may serve several engines; what it keeps for the rows in flight is its session.
"""

from collections.abc import Sequence
from ctypes import addressof, c_int64
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from spec2seq.decoding.acceptance import Draft, likeliest
from spec2seq.decoding.lookup import NgramLookup
from spec2seq.decoding.rows import Rows
from spec2seq.decoding.sampling import DRAFT, Sampling, draw, uniform
from spec2seq.errors import UsageError
from spec2seq.kernels import library as c
from spec2seq.models.encoder_decoder import Decoded, Encoded, EncoderDecoder
from spec2seq.models.native import call, point_to


class Drafter(Protocol):
    """`has_confidence`: gives a top probability to stop at. `hidden_layers`: the verifier's layers whose states
    it wants in `commit`. `longest`: the most tokens of a draft, `longest_source` of a source; None: any number. A
    drafter is also run on made-up sources, by which an adaptive length measures its costs."""

    has_confidence: bool
    hidden_layers: tuple[int, ...]
    longest: int | None
    longest_source: int | None

    def session(self, rows: Rows, verifier: EncoderDecoder) -> "Session": ...


class Session(Protocol):
    """A drafter's state for the rows in flight, slots 0…n-1."""

    def admit(self, first_slot: int, encoded: Encoded) -> None:
        """New rows at the slots from `first_slot` on; `encoded` is the verifier's encoding of their sources."""
        ...

    def draft(self, k: int, room: Tensor, confidence: float | None, sampling: Sampling | None) -> Draft:
        """Up to `k` ≥ 1 tokens for every row in flight, at most `room[rows]` for each."""
        ...

    def prompted(self, first_slot: int, decoded: Decoded) -> None:
        """The rows from `first_slot` on have a prompt; `decoded` is the verifier's pass over the decoder start and it,
        without its last token. Only for a drafter with `hidden_layers`."""
        ...

    def commit(self, counts: list[int], decoded: Decoded | None) -> None:
        """Row i has `counts[i]` tokens more; `decoded` is the verifier's pass over the last token and the draft. None:
        only for a drafter without `hidden_layers`."""
        ...

    def move(self, source: int, target: int) -> None:
        """The row at slot `source` now lives at slot `target`."""
        ...


@dataclass(frozen=True, eq=False)
class LittleModel:
    """A little autoregressive encoder–decoder with the verifier's vocabulary (assisted generation, BiLD).

    `Seq2Seq.drafter()` makes one; its tokenizer lets the vocabularies be compared token by token. `distributions`
    makes it give the distribution of every drafted token, drawn or not. Where its encoder is the verifier's, it reads
    what the verifier has encoded.
    `shortlist[count]` are the tokens that it scores, in the order of its logits; None: all; `whole` is then the model
    that scores every token.
    """

    model: EncoderDecoder
    tokenizer: Any = None
    distributions: bool = False
    shortlist: Tensor | None = None
    whole: EncoderDecoder | None = None

    has_confidence = True
    hidden_layers = ()
    longest = None

    def scoring(self, tokens: Sequence[int]) -> "LittleModel":
        """This with scores of these tokens and the end token alone, which makes a pass cheaper (FR-Spec, Zhao et al.
        2025): others are never proposed, and probabilities are among these. No tokens: of all.

        Raises UsageError for tokens that it does not have, and for a model that has no layers here.
        """
        whole = self.whole or self.model
        if not tokens:
            return replace(self, model=whole, shortlist=None, whole=None)
        a = whole.architecture
        chosen = sorted({*tokens, a.eos_token_id})
        if chosen[0] < 0 or chosen[-1] >= a.vocabulary:
            raise UsageError(f"shortlist has tokens {chosen[0]} to {chosen[-1]}; allowed: 0 to {a.vocabulary - 1}")
        if not isinstance(whole, EncoderDecoder):
            raise UsageError("a shortlist needs a family that has layers here; this one runs in Transformers' modules")
        ids = torch.tensor(chosen, device=whole.device)
        return replace(self, model=whole.scoring(ids), shortlist=ids, whole=whole)

    @property
    def longest_source(self) -> int | None:
        return self.model.architecture.max_source_positions

    def reads_as(self, verifier: EncoderDecoder) -> bool:
        """Whether it needs no encoder of its own: it is an early exit, or was distilled under the verifier's encoder,
        as Distil-Whisper was."""
        return isinstance(self.model, EncoderDecoder) and self.model.reads_as(verifier)

    def session(self, rows: Rows, verifier: EncoderDecoder) -> "LittleSession":
        return LittleSession(self, rows, verifier)


class LittleSession:
    """Own encoder, own cache. `fed[slot]` tokens of a row are in the cache; the rest is fed with the next draft:
    one token, or two after a draft that stood whole."""

    def __init__(self, drafter: LittleModel, rows: Rows, verifier: EncoderDecoder):
        self.model, self.rows, self.distributions = drafter.model, rows, drafter.distributions
        model, vocabulary = drafter.model, verifier.architecture.vocabulary
        self.shares_encoder = drafter.reads_as(verifier)
        self.cache = model.new_cache(rows.slots)
        self.fed, self.has_read = [0] * rows.slots, [False] * rows.slots
        self.asked = None if drafter.model.native is None else drafter.model.native.little()
        self.compiled = {name: (c_int64 * rows.slots)() for name in ("fed", "counts", "unsure", "passes", "read")}
        self.drafted, self.pointed = (c_int64 * 0)(), {}
        # Padded vocabularies of one tokenizer may differ in size; only the common part is ever proposed.
        self.vocabulary, self.common = vocabulary, min(vocabulary, model.architecture.vocabulary)
        self.shortlist = drafter.shortlist
        if self.shortlist is not None:
            self.shortlist = self.shortlist[self.shortlist < self.common]
        self.scores = self.common if self.shortlist is None else len(self.shortlist)  # that count
        # Stopping early needs a host read for each token: free on a CPU, a stall on a GPU.
        self.stops_early = model.device.type == "cpu"

    def admit(self, first_slot: int, encoded: Encoded) -> None:
        if self.shares_encoder:
            self.model.admit(self.cache, first_slot, encoded)
        for slot in range(first_slot, self.rows.count):
            self.fed[slot], self.has_read[slot] = 0, self.shares_encoder

    def draft(self, k: int, room: Tensor, confidence: float | None, sampling: Sampling | None) -> Draft:
        k = min(k, self.rows.room)  # further passes would be for nothing
        if sampling is None and self.drafts_natively:
            return self._draft_native(k, room, confidence)
        return self._draft_over_tensors(k, room, confidence, sampling)

    @property
    def drafts_natively(self) -> bool:
        """Whether the compiled executor can draft, where nothing is sampled."""
        native = self.model.native
        if native is None or self.distributions or len(self.rows.eos_token_ids) > 1:
            return False
        return native.takes(self.model.target_embedding)

    def _read_sources(self) -> None:
        """Only before a draft, which some rows never get."""
        rows = self.rows
        new = [slot for slot in range(rows.count) if not self.has_read[slot]]
        if not new:
            return
        tokens = rows.source_tokens[new, : max(rows.host_sources[slot] for slot in new)]
        if self.model.architecture.sound is None:
            tokens = self._known(tokens)
        encoded = self.model.encode(tokens, rows.source_lengths[new])
        together = new[-1] - new[0] < len(new)
        for place in range(0, len(new), len(new) if together else 1):
            self.model.admit(self.cache, new[place], encoded.part(slice(place, None if together else place + 1)))
        for slot in new:
            self.has_read[slot] = True

    def _draft_over_tensors(
        self, k: int, room: Tensor, confidence: float | None, sampling: Sampling | None = None
    ) -> Draft:
        self._read_sources()
        rows, alive = self.rows, room > 0
        drafting = alive.tolist()  # read now: later it would wait for the passes
        n, lengths, host = rows.count, rows.lengths[: rows.count], rows.host_lengths
        steps, probabilities = [], []
        length, calls, unsure = torch.zeros_like(lengths), torch.zeros_like(lengths), torch.zeros_like(alive)
        fresh = lengths - torch.tensor(self.fed[:n], device=lengths.device)
        for step in range(k):
            logits = self._feed_pending() if step == 0 else self._feed(steps[-1], lengths, host, step)
            calls = calls + alive
            token, top, q = self._choose(logits, lengths + step, confidence, sampling)
            if confidence is not None:
                doubt = alive & (top < confidence)
                unsure |= doubt
                alive = alive & ~doubt
                if self.stops_early and not alive.any():
                    break
            steps.append(token)
            probabilities.append(q)
            length = length + alive
            alive = alive & ~rows.ends(token) & (length < room)
            if self.stops_early and not alive.any():
                break
        for slot in range(n):
            if drafting[slot]:  # the first pass fed all that was committed, each further one a drafted token
                self.fed[slot] = host[slot] + step
        tokens = torch.stack(steps, 1) if steps else lengths.new_zeros(n, 0)
        drawn = torch.stack(probabilities, 1) if steps and probabilities[0] is not None else None
        return Draft(tokens, length, unsure, drawn, calls, (fresh + calls - 1) * (calls > 0))

    @property
    def reads_rows(self) -> bool:
        """Whether the compiled executor can draft again after it has committed tokens."""
        return self.common == self.vocabulary

    def describe(
        self, k: int, confidence: float | None, furthest: int, room: Tensor | None = None
    ) -> c.LittleDraft:  # fmt: skip
        """Tell the compiled executor of the rows, and where it may write drafts of k tokens; when the last of them
        begins no row has more than `furthest`."""
        self._read_sources()
        rows, n, to = self.rows, self.rows.count, self.asked
        fresh = max(have - cached for have, cached in zip(rows.host_lengths[:n], self.fed, strict=False))
        self.cache.reserve(furthest + max(fresh, k + 1) + k)
        self.compiled["fed"][:n] = self.fed[:n]
        if len(self.drafted) < rows.slots * k:
            self.drafted = (c_int64 * (rows.slots * k))()
        self.known_tokens = self._known(rows.tokens)
        to.tokens, to.token_stride = self.known_tokens.data_ptr(), rows.tokens.stride(0)
        to.rows, to.k, to.source_horizon = n, k, rows.source_horizon
        to.lengths, to.limits = rows.lengths.data_ptr(), rows.limits.data_ptr()
        to.source_lengths = self.cache.source_lengths.data_ptr()
        point_to(to, "own", self.cache.own, self.pointed)
        point_to(to, "source", self.cache.source, self.pointed)
        for name, array in self.compiled.items():
            setattr(to, name, addressof(array))
        to.eos, to.common, to.drafted = rows.eos_token_ids[0], self.scores, addressof(self.drafted)
        to.shortlist = None if self.shortlist is None else self.shortlist.data_ptr()
        to.room = None if room is None else room.data_ptr()
        to.confidence = -1.0 if confidence is None else confidence
        return to

    def catch_up(self) -> None:
        """To be called after iterations in the compiled executor, which knows what the cache has."""
        self.fed[: self.rows.count] = self.compiled["fed"][: self.rows.count]

    def _draft_native(self, k: int, room: Tensor, confidence: float | None) -> Draft:
        """The same in one call of the compiled executor."""
        room = room.contiguous()
        n, asked = self.rows.count, self.describe(k, confidence, self.rows.horizon, room)
        call("spec2seq_draft", asked)
        self.catch_up()
        tokens = torch.tensor(self.drafted[: n * k]).view(n, k)[:, : asked.width]
        found = {name: torch.tensor(self.compiled[name][:n]) for name in ("counts", "unsure", "passes", "read")}
        return Draft(tokens, found["counts"], found["unsure"].bool(), None, found["passes"], found["read"])

    def commit(self, counts: list[int], decoded: Decoded | None) -> None:
        for slot in range(len(counts)):
            self.fed[slot] = min(self.fed[slot], self.rows.host_lengths[slot] - 1)

    def move(self, source: int, target: int) -> None:
        self.cache.move(source, target, *self.rows.places(target))
        self.fed[target], self.has_read[target] = self.fed[source], self.has_read[source]

    def _feed_pending(self) -> Tensor:
        """Feed what each row has that the cache has not; logits `[rows, vocabulary]` after its last token."""
        rows, n = self.rows, self.rows.count
        fed, host = self.fed[:n], rows.host_lengths[:n]
        width = max(have - cached for have, cached in zip(host, fed, strict=True))
        uniform_rows = min(fed) == max(fed) and min(host) == max(host)
        if uniform_rows:
            tokens = rows.tokens[:n, fed[0] : host[0]]
            starts, last = rows.lengths[:n] - width, None
            if width > 1:
                last = torch.full((n, 1), width - 1, device=starts.device)
        else:
            tokens, starts = rows.tokens_from(fed, width)
            last = (rows.lengths[:n] - starts - 1)[:, None]
        return self._decode(tokens, starts, max(fed) + width, uniform_rows, last)

    def _feed(self, token: Tensor, lengths: Tensor, host: list[int], step: int) -> Tensor:
        n = self.rows.count
        longest = max(host[:n])
        same = min(host[:n]) == longest
        return self._decode(token[:, None], lengths + (step - 1), longest + step, same, None)

    def _decode(self, tokens: Tensor, starts: Tensor, horizon: int, same: bool, last: Tensor | None) -> Tensor:
        decoded = self.model.decode_block(
            self.cache, self._known(tokens), starts, horizon, uniform=same,
            source_horizon=self.rows.source_horizon, logit_positions=last,
        )  # fmt: skip
        return decoded.logits[:, -1]

    def _known(self, tokens: Tensor) -> Tensor:
        """A larger verifier may write a padding entry that the little model has no embedding for."""
        return tokens if self.common == self.vocabulary else tokens.clamp(max=self.common - 1)

    def _choose(self, logits: Tensor, positions: Tensor, confidence: float | None, sampling: Sampling | None):
        """The next token, its row's top probability (None if nobody asks), and q padded to the verifier's size."""
        logits = logits[:, : self.scores]
        if sampling is None:
            if confidence is None and not self.distributions:
                return self._tokens(likeliest(logits)), None, None
            p = logits.float().softmax(-1)
            top, place = p.max(-1)
            return self._tokens(place), top, self._padded(p) if self.distributions else None
        top = None if confidence is None else logits.float().softmax(-1).amax(-1)
        q = sampling.probabilities(logits)
        place = draw(q, uniform(self.rows.seeds[: self.rows.count], positions, DRAFT))
        return self._tokens(place), top, self._padded(q)

    def _tokens(self, places: Tensor) -> Tensor:
        """Places among the scores → token ids."""
        return places if self.shortlist is None else self.shortlist[places]

    def _padded(self, p: Tensor) -> Tensor:
        if self.shortlist is None:
            return torch.nn.functional.pad(p, (0, self.vocabulary - self.common))
        return p.new_zeros(len(p), self.vocabulary).index_copy_(1, self.shortlist, p)


DRAFTERS: dict[str, type] = {"little": LittleModel, "lookup": NgramLookup}
