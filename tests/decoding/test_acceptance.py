"""Acceptance rules on hand-made logits."""

import math

import pytest
import torch

from spec2seq import Exact, RejectionSampling, Rollback, TopBeta, UsageError
from spec2seq.decoding.acceptance import Draft

# Log-probabilities (they sum to one): token 2 is the likeliest, then 0, 3, 1.
PROBABILITIES = torch.tensor([0.25, 0.05, 0.5, 0.2], dtype=torch.float64)
LOGITS = PROBABILITIES.log()
NATS = {token: -math.log(p) for token, p in enumerate(PROBABILITIES.tolist())}


def judge(rule, drafts: list[list[int]], logits: torch.Tensor | None = None) -> list[tuple[int, int]]:
    """(accepted, replacement) of each row; every place has the logits above unless `logits` says otherwise."""
    width = max(map(len, drafts))
    tokens = torch.tensor([draft + [2] * (width - len(draft)) for draft in drafts]).view(len(drafts), width)
    lengths = torch.tensor([len(draft) for draft in drafts])
    if logits is None:
        logits = LOGITS.expand(len(drafts), width + 1, 4)
    zeros = torch.zeros(len(drafts), dtype=torch.long)
    verdict = rule.judge(logits, Draft(tokens, lengths), zeros, zeros + 1)
    return list(zip(verdict.accepted.tolist(), verdict.replacement.tolist(), strict=True))


@pytest.mark.parametrize(
    ("draft", "accepted"), [([], 0), ([2], 1), ([0], 0), ([2, 2, 2], 3), ([2, 0, 2], 1), ([0, 2, 2], 0), ([2, 2, 1], 2)]
)
def test_exact_takes_the_likeliest_only(draft, accepted):
    assert judge(Exact(), [draft]) == [(accepted, 2)]


def test_replacements_come_from_the_place_of_the_first_rejection():
    best = [3, 1, 0, 2]  # the likeliest token of each place
    logits = torch.nn.functional.one_hot(torch.tensor([best]), 4).double().repeat(4, 1, 1)
    drafts = [[3, 1, 0], [3, 1, 1], [3, 2, 0], [0, 1, 0]]
    assert judge(Exact(), drafts, logits) == [(3, 2), (2, 0), (1, 1), (0, 3)]
    assert judge(TopBeta(1, 5.0), drafts, logits) == [(3, 2), (2, 0), (1, 1), (0, 3)]
    assert judge(Rollback(1.0), drafts, logits) == [(3, 2), (2, 0), (1, 1), (0, 3)]


def test_ragged_rows_are_judged_within_their_own_lengths():
    """The padding of a shorter draft happens to be right here; it must not count."""
    drafts = [[2, 2, 2], [2], [], [0, 2]]
    for rule in (Exact(), TopBeta(1, 0.0), Rollback(1.0), Rollback(None)):
        assert [accepted for accepted, _ in judge(rule, drafts)][:3] == [3, 1, 0]
    assert judge(Exact(), drafts)[3] == (0, 2)


@pytest.mark.parametrize(
    ("beta", "tau", "stand"),
    [
        (1, 9.0, {2}),  # the best alone, whatever tau
        (2, 9.0, {2, 0}),
        (3, 9.0, {2, 0, 3}),
        (4, 9.0, {2, 0, 3, 1}),
        (9, 9.0, {2, 0, 3, 1}),  # more than the vocabulary has
        (4, 0.0, {2}),
        (4, math.log(2) + 1e-9, {2, 0}),  # 0.25 is log 2 below 0.5
        (4, math.log(2) - 1e-9, {2}),
        (4, math.log(2.5) + 1e-9, {2, 0, 3}),
        (4, math.log(10) + 1e-9, {2, 0, 3, 1}),
        (4, math.log(10) - 1e-9, {2, 0, 3}),
        (2, math.log(10) + 1e-9, {2, 0}),  # both conditions
    ],
)
def test_top_beta_within_tau(beta, tau, stand):
    found = {token for token in range(4) if judge(TopBeta(beta, tau), [[token]])[0][0]}
    assert found == stand


def test_top_beta_equal_logits():
    logits = torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(4, 2, 4)
    drafts = [[0], [1], [2], [3]]
    assert [accepted for accepted, _ in judge(TopBeta(1, 0.0), drafts, logits)] == [1, 0, 0, 0]  # greedy's own
    assert [accepted for accepted, _ in judge(TopBeta(2, 0.0), drafts, logits)] == [1, 1, 1, 0]  # they share a rank
    assert TopBeta(1, 3.0).lossless and not TopBeta(2, 0.0).lossless


@pytest.mark.parametrize(
    ("threshold", "stand"),
    [
        (0.0, {2}),  # the likeliest is never a violation
        (NATS[2] - 1e-6, {2}),
        (NATS[0] - 1e-6, {2}),
        (NATS[0] + 1e-6, {2, 0}),
        (NATS[3] + 1e-6, {2, 0, 3}),
        (NATS[1] - 1e-6, {2, 0, 3}),
        (NATS[1] + 1e-6, {2, 0, 3, 1}),
        (None, {2, 0, 3, 1}),
    ],
)
def test_rollback_beyond_its_threshold(threshold, stand):
    found = {token for token in range(4) if judge(Rollback(threshold), [[token]])[0][0]}
    assert found == stand


def test_a_second_violation_behind_a_guarded_one_still_rolls_back():
    """The likeliest token may be improbable; the original's check ends there (spec 2.2, item 9)."""
    flat = torch.tensor([0.2, 0.1, 0.0, 0.0])
    peaked = torch.tensor([0.0, 0.0, 9.0, 0.0])
    logits = torch.stack([flat, peaked, peaked])[None]
    assert judge(Rollback(1.0), [[0, 1]], logits) == [(1, 2)]
    assert judge(Rollback(1.0), [[0, 2]], logits) == [(2, 2)]


def test_the_distance_of_distributions():
    """KL(p_S ‖ p_L) looks at the whole distribution: the same token stands or falls with the drafter's certainty."""
    p = LOGITS.softmax(-1)
    q = torch.tensor([0.7, 0.1, 0.1, 0.1])
    kl = float((q * (q / p).log()).sum())
    for threshold, stands in ((kl - 1e-4, 0), (kl + 1e-4, 1)):
        draft = Draft(torch.tensor([[0]]), torch.tensor([1]), probabilities=q.expand(1, 1, 4))
        zeros = torch.zeros(1, dtype=torch.long)
        verdict = Rollback(threshold, "kl").judge(LOGITS.expand(1, 2, 4), draft, zeros, zeros)
        assert verdict.accepted.tolist() == [stands]
    assert not Rollback(0.0, "kl").lossless and Rollback(0.0).lossless and not Rollback(0.1).lossless


def test_rollback_does_not_depend_on_the_scale_of_logits():
    """Logits are no log-probabilities: a constant changes nothing."""
    shifted = (LOGITS + 7.5).expand(1, 3, 4)
    assert judge(Rollback(NATS[0] + 1e-6), [[0, 3]], shifted) == [(1, 2)]


@pytest.mark.parametrize("rule", [TopBeta(4, math.inf), Rollback(None), Rollback(50.0), Exact(), RejectionSampling()])
def test_no_rule_lets_a_forbidden_token_pass(rule):
    """A processor makes a token impossible; min_length must hold even where nothing is rolled back."""
    logits = LOGITS.clone().expand(1, 3, 4).clone()
    logits[0, 1, 1] = -torch.inf
    accepted, replacement = judge(rule, [[2, 1]], logits)[0]
    assert accepted <= 1
    assert (accepted, replacement) != (1, 1)


def test_a_block_of_no_draft():
    for rule in (Exact(), TopBeta(3, 1.0), Rollback(1.0), Rollback(None)):
        assert judge(rule, [[], []]) == [(0, 2), (0, 2)]
    accepted, _ = judge(RejectionSampling(), [[]])[0]
    assert accepted == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopBeta(0, 1.0), "beta is 0; allowed: at least 1"),
        (lambda: TopBeta(2, -0.1), "tau is -0.1; allowed: at least 0.0"),
        (lambda: TopBeta(2, math.nan), "tau is nan"),
        (lambda: Rollback(1.0, "euclid"), "distance is 'euclid'; allowed: cross-entropy, kl"),
        (lambda: Rollback(-1.0), "rollback_threshold is -1.0; allowed: at least 0.0"),
    ],
)
def test_thresholds_out_of_range(make, message):
    with pytest.raises(UsageError) as error:
        make()
    assert message in str(error.value)
