"""Iterations over tensors, for whatever the compiled executor and the fixed tensors of a GPU do not know."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from spec2seq.decoding.acceptance import Draft, Verdict
from spec2seq.decoding.drafters import Session
from spec2seq.decoding.methods import Speculative
from spec2seq.decoding.native_loop import Iterated
from spec2seq.decoding.processors import Prefix, Processor, processed
from spec2seq.decoding.rows import Rows
from spec2seq.errors import Spec2SeqError
from spec2seq.models.cache import Cache
from spec2seq.models.encoder_decoder import Decoded, EncoderDecoder


class TensorLoop:
    """The parts of an iteration, for all rows in flight: `draft`, `verify`, `judge`, `commit`."""

    def __init__(
        self, verifier: EncoderDecoder, method: Speculative, rows: Rows, cache: Cache, session: Session | None,
        processors: Sequence[Processor],
    ):  # fmt: skip
        self.verifier, self.method, self.rows, self.cache = verifier, method, rows, cache
        self.session, self.processors = session, processors

    def draft(self, k: int) -> Draft:
        """Up to k tokens for every row, or as many as its limit leaves beside the verifier's own token; 0: none."""
        rows = self.rows
        n = rows.count
        if not k:
            return Draft(rows.tokens.new_zeros(n, 0), rows.lengths.new_zeros(n), calls=0)
        rows.reserve(rows.horizon + k + 1)
        # The verifier adds a token of its own, so a draft leaves room for one.
        spare = rows.limits[:n] - rows.lengths[:n] - 1
        if self.method.starts == "verifier":
            spare = spare.where(rows.lengths[:n] > rows.given[:n], 0)
        draft = self.session.draft(k, spare, self.method.length.confidence, self.method.acceptance.sampling)
        return self._known(dataclasses.replace(draft, asked=k).cut(rows.room, spare))

    def _known(self, draft: Draft) -> Draft:
        """The same with tokens of the vocabulary alone, whatever the drafter left behind its drafts. Raises
        Spec2SeqError for others within them, but not on a GPU, where the host would have to wait."""
        within = torch.arange(draft.width, device=draft.tokens.device) < draft.lengths[:, None]
        tokens = draft.tokens.where(within, 0)
        vocabulary = self.verifier.architecture.vocabulary
        if tokens.device.type == "cpu" and ((tokens < 0) | (tokens >= vocabulary)).any():
            raise Spec2SeqError(f"{type(self.session).__name__} drafts ids that the vocabulary does not have")
        return dataclasses.replace(draft, tokens=tokens)

    def unverified_tail(self, draft: Draft) -> Tensor | None:
        """`[rows]` whose drafts end them without being verified; None if there is none."""
        if self.method.verify_tail or not draft.width:
            return None
        within = torch.arange(draft.width, device=draft.tokens.device) < draft.lengths[:, None]
        tail = (within & self.rows.ends(draft.tokens)).any(1)
        if self.processors:  # drafters do not see them, and what they forbid (an early end) must not pass
            blank = torch.zeros(*draft.tokens.shape, self.verifier.architecture.vocabulary, device=within.device)
            allowed = self._processed(blank, draft).gather(2, draft.tokens[:, :, None])[:, :, 0] > -torch.inf
            tail &= (allowed | ~within).all(1)
        return tail if tail.any() else None

    def verify(self, draft: Draft) -> Decoded:
        """One pass of the verifier over each row's last token and its draft, `[rows, 1 + width]`."""
        rows = self.rows
        n, horizon = rows.count, rows.horizon
        rows.reserve(horizon + draft.width + 1)
        if rows.uniform:
            last = rows.tokens[:n, horizon - 1 : horizon]
        else:
            last = rows.tokens[:n].gather(1, rows.lengths[:n, None] - 1)
        tokens = torch.cat([last, draft.tokens], 1) if draft.width else last
        return self.verifier.decode_block(
            self.cache, tokens, rows.lengths[:n] - 1, horizon + draft.width,
            uniform=rows.uniform, source_horizon=rows.source_horizon,
            hidden_layers=self.method.drafter.hidden_layers if self.method.drafter else (),
        )  # fmt: skip

    def judge(self, decoded: Decoded | None, draft: Draft, tail: Tensor | None) -> Verdict:
        """What stands of each draft by the method's rule; of a row in `tail` `[rows]` all."""
        if decoded is None:  # every row ends in its own draft
            return Verdict(draft.lengths, draft.lengths)
        rows = self.rows
        n, logits = rows.count, decoded.logits
        if self.processors:
            logits = self._processed(logits, draft)
        verdict = self.method.acceptance.judge(logits, draft, rows.seeds[:n], rows.lengths[:n])
        if tail is not None:  # rows are what they are alone, whether the others needed a pass or not
            verdict = Verdict(torch.where(tail, draft.lengths, verdict.accepted), verdict.replacement)
        return verdict

    def _processed(self, logits: Tensor, draft: Draft) -> Tensor:
        """Logits `[rows, width or more, vocabulary]` of the drafted places as the generation config wants them."""
        rows, n = self.rows, self.rows.count
        if draft.width:  # the draft stands behind the committed tokens while the places are scored
            places = rows.lengths[:n, None] + torch.arange(draft.width, device=logits.device)
            rows.tokens[:n].scatter_(1, places, draft.tokens)
        prefix = Prefix(rows.tokens[:n], rows.lengths[:n], rows.limits[:n], rows.given[:n])
        return processed(logits, prefix, self.processors)

    def commit(self, draft: Draft, verdict: Verdict, decoded: Decoded | None, tail: Tensor | None) -> Iterated:
        """Append what stands, and the verifier's own token behind it, to the rows."""
        rows, n = self.rows, self.rows.count
        accepted, replacement, drafted, unsure, tokens = self._read(draft, verdict)
        emitted = [
            rows.through_end([*(tokens[place][slot] for place in range(accepted[slot])), replacement[slot]])
            for slot in range(n)
        ]
        rows.append(emitted)
        if self.session is not None and decoded is not None:
            self.session.commit([len(new) for new in emitted], decoded)
        unverified = [0] * n if tail is None else tail.tolist()
        return Iterated(drafted, accepted, emitted, unverified, tokens, draft.by_row(draft.calls),
                         draft.by_row(draft.fed), draft.asked, int(decoded is not None), unsure)  # fmt: skip

    def _read(self, draft: Draft, verdict: Verdict) -> tuple[list, list, list, list, list]:
        """The one host read: accepted, replacement, drafted, unsure `[rows]`, tokens `[width][rows]`."""
        if not draft.width and draft.unsure is None:
            none = [0] * self.rows.count
            return none, verdict.replacement.tolist(), none, none, []
        unsure = torch.zeros_like(draft.lengths) if draft.unsure is None else draft.unsure.long()
        packed = torch.stack([verdict.accepted, verdict.replacement, draft.lengths, unsure])
        host = torch.cat([packed, draft.tokens.T]).tolist()
        return *host[:4], host[4:]
