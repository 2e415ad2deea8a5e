"""Acceptance rules: how many drafted tokens stand, and what replaces the first that does not.

Each rule is vectorised over ragged rows and stays on the device.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from spec2seq.config import check_choice, check_range
from spec2seq.decoding.sampling import ACCEPT, REPLACE, Sampling, draw, uniform


@dataclass(frozen=True)
class Draft:
    """What a drafter proposes: tokens `[rows, width]`, of which `lengths[rows]` count.

    `unsure[rows]` says whose draft ended because the drafter was unsure. `probabilities`
    `[rows, width, vocabulary]` are what the tokens were drawn from; None where they were not drawn and no rule
    needs them.
    `calls` (one by default) and `fed` count the drafter's passes that a row took part in and the tokens that it was fed
    in them, by row or one number for all; `asked` is the k that was asked for.
    """

    tokens: Tensor
    lengths: Tensor
    unsure: Tensor | None = None
    probabilities: Tensor | None = None
    calls: Tensor | int = 1
    fed: Tensor | int = 0
    asked: int = 0

    @property
    def width(self) -> int:
        return self.tokens.shape[1]

    def by_row(self, count: Tensor | int) -> list[int]:
        """`calls` or `fed` of every row."""
        return count.tolist() if isinstance(count, Tensor) else [count] * self.tokens.shape[0]

    def cut(self, width: int, room: Tensor) -> "Draft":
        """The same without the places from `width` on, and with at most `room[rows]` tokens a row."""
        tokens, q = self.tokens[:, :width], self.probabilities
        lengths = torch.minimum(self.lengths, room.clamp(max=tokens.shape[1])).clamp(min=0)
        return replace(self, tokens=tokens, lengths=lengths, probabilities=None if q is None else q[:, :width])


@dataclass(frozen=True)
class Verdict:
    """`accepted[rows]` drafted tokens stand; `replacement[rows]` comes after them."""

    accepted: Tensor
    replacement: Tensor


class AcceptanceRule(Protocol):
    """`sampling` is how drafters must draw their tokens; None: they take the likeliest."""

    sampling: Sampling | None
    lossless: bool

    def judge(self, logits: Tensor, draft: Draft, seeds: Tensor, lengths: Tensor) -> Verdict:
        """Judge drafts.

        Args:
            logits: `[rows, width + 1, vocabulary]`, the verifier's, processed; place j scores drafted token j,
                the last place the token after a draft that stands whole.
            draft: what the drafter proposed.
            seeds: `[rows]`, one for each row, for rules that draw.
            lengths: `[rows]`, tokens before the draft.
        """
        ...


@dataclass(frozen=True)
class Exact:
    """A drafted token stands if it is the verifier's likeliest: the output is greedy's, token for token."""

    sampling = None
    lossless = True

    def judge(self, logits: Tensor, draft: Draft, seeds: Tensor, lengths: Tensor) -> Verdict:
        best = likeliest(logits)
        return _verdict(draft.tokens == best[:, :-1], draft, best)


@dataclass(frozen=True)
class TopBeta:
    """A drafted token stands if it is among the verifier's top `beta` and its log-probability is at most `tau`
    below the best (SpecDec, Xia et al. 2023, section 3.2). The replacement is the likeliest token."""

    beta: int = 3
    tau: float = 1.0

    sampling = None

    def __post_init__(self):
        check_range("beta", self.beta, low=1)
        check_range("tau", self.tau, low=0.0)

    @property
    def lossless(self) -> bool:
        return self.beta == 1

    def judge(self, logits: Tensor, draft: Draft, seeds: Tensor, lengths: Tensor) -> Verdict:
        best = likeliest(logits)
        if not draft.width:
            return _verdict(draft.tokens.bool(), draft, best)
        scored = logits[:, :-1].float() if logits.dtype != torch.float64 else logits[:, :-1]
        score = scored.gather(2, draft.tokens[:, :, None])
        possible = score[:, :, 0] > -torch.inf  # a processor may forbid a token; then no tau lets it pass
        # Equal logits share the better rank, but beta 1 must mean the one token that greedy takes.
        rank = (scored > score).sum(-1)
        near = scored.amax(-1) - score[:, :, 0] <= self.tau
        stands = (rank < self.beta) & near & possible if self.beta > 1 else False
        return _verdict((draft.tokens == best[:, :-1]) | stands, draft, best)


DISTANCES = ("cross-entropy", "kl")


@dataclass(frozen=True)
class Rollback:
    """A drafted token is rejected where its distance exceeds `threshold`, in nats, and it is not the verifier's
    likeliest (BiLD, Kim et al. 2023, section 3.2). The likeliest replaces it, or with `sampling` a draw.

    distance cross-entropy is −ln p_L(token), what the paper's experiments take; kl is KL(p_S ‖ p_L), of the
    drafter's whole distribution. None never rolls back; 0 accepts the likeliest alone.
    """

    threshold: float | None = 2.0
    distance: str = "cross-entropy"
    sampling: Sampling | None = None

    def __post_init__(self):
        check_range("rollback_threshold", self.threshold, low=0.0)
        check_choice("distance", self.distance, DISTANCES)

    @property
    def lossless(self) -> bool:
        return self.threshold == 0 and self.sampling is None and not self.needs_distributions

    @property
    def needs_distributions(self) -> bool:
        """Whether drafts must come with the distributions of their tokens."""
        return self.distance == "kl"

    def judge(self, logits: Tensor, draft: Draft, seeds: Tensor, lengths: Tensor) -> Verdict:
        best = likeliest(logits)
        verdict = _verdict(self._stands(logits[:, :-1], draft, best[:, :-1]), draft, best)
        if self.sampling is None:
            return verdict
        place = verdict.accepted[:, None, None].expand(-1, 1, logits.shape[2])
        p = self.sampling.probabilities(logits.gather(1, place)[:, 0])
        return Verdict(verdict.accepted, draw(p, uniform(seeds, lengths + verdict.accepted, REPLACE)))

    def _stands(self, logits: Tensor, draft: Draft, best: Tensor) -> Tensor:
        """`[rows, width]`, from the logits of the drafted places and the likeliest token at each of them."""
        if not draft.width:
            return draft.tokens.bool()
        scored = logits.float()
        score = scored.gather(2, draft.tokens[:, :, None])[:, :, 0]
        possible = score > -torch.inf  # what a processor forbids is rejected all the same
        if self.threshold is None:
            return possible
        if self.needs_distributions:
            q = draft.probabilities.float()
            # What a processor forbids has no finite distance; the rest of the vocabulary still has one.
            log_p = scored.log_softmax(-1).clamp(min=-100.0)
            distance = (q * (q.clamp(min=1e-30).log() - log_p)).sum(-1)
        else:
            distance = scored.logsumexp(-1) - score
        # The likeliest is no violation even where it is improbable: to replace it by itself would only cost a pass.
        return possible & ((distance <= self.threshold) | (draft.tokens == best))


@dataclass(frozen=True)
class RejectionSampling:
    """Speculative sampling (Leviathan et al. 2023, algorithm 1): the output has the verifier's own distribution.

    A token drawn from q stands with probability min(1, p/q); the replacement is drawn from max(p - q, 0). A
    drafter without probabilities counts as certain of its token.
    """

    sampling: Sampling = Sampling()

    lossless = False  # equal in distribution, not token for token

    def judge(self, logits: Tensor, draft: Draft, seeds: Tensor, lengths: Tensor) -> Verdict:
        p = self.sampling.probabilities(logits)
        rows, width, vocabulary = p.shape[0], draft.width, p.shape[2]
        q = draft.probabilities
        steps = torch.arange(width, device=p.device)
        p_token = p[:, :-1].gather(2, draft.tokens[:, :, None])[:, :, 0]
        q_token = 1.0 if q is None else q.gather(2, draft.tokens[:, :, None])[:, :, 0]
        numbers = uniform(seeds[:, None], lengths[:, None] + steps, ACCEPT)
        accepted = _leading(numbers * q_token < p_token, draft.lengths)
        rest = p.gather(1, accepted[:, None, None].expand(-1, 1, vocabulary))[:, 0]
        if width:
            rejected = accepted < draft.lengths
            place = accepted.clamp(max=width - 1)
            if q is None:
                token = draft.tokens.gather(1, place[:, None])
                taken = torch.zeros_like(rest).scatter(1, token, torch.ones_like(rest))
            else:
                taken = q.gather(1, place[:, None, None].expand(-1, 1, vocabulary))[:, 0]
            residual = (rest - taken).clamp(min=0)
            # p equal to q can never be rejected, but for rounding: then any token of p will do.
            usable = rejected & (residual.sum(-1) > 0)
            rest = torch.where(usable[:, None], residual, rest)
        return Verdict(accepted, draw(rest, uniform(seeds, lengths + accepted, REPLACE)).view(rows))


def likeliest(logits: Tensor) -> Tensor:
    """Logits `[..., vocabulary]` → the place of the largest, the first among equals: `[...]`."""
    if logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(logits.numpy().argmax(-1))  # PyTorch's own takes ten times as long for a few rows
    return logits.argmax(-1)


def _verdict(stands: Tensor, draft: Draft, best: Tensor) -> Verdict:
    """Accept the leading run of `stands[rows, width]`; replace by `best[rows, width + 1]` at its end."""
    if not draft.width:
        return Verdict(torch.zeros_like(draft.lengths), best[:, 0])
    accepted = _leading(stands, draft.lengths)
    return Verdict(accepted, best.gather(1, accepted[:, None])[:, 0])


def _leading(stands: Tensor, lengths: Tensor) -> Tensor:
    """How many leading places hold, within each row's own length: `[rows, width]` → `[rows]`."""
    within = torch.arange(stands.shape[1], device=stands.device) < lengths[:, None]
    return (stands & within).long().cumprod(1).sum(1)


ACCEPTANCE_RULES: dict[str, type] = {
    "exact": Exact,
    "top-beta": TopBeta,
    "rollback": Rollback,
    "rejection-sampling": RejectionSampling,
}
