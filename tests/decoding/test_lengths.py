"""Length rules: the adaptive one does the arithmetic of acceptance and cost."""

import pytest
import tiny

from spec2seq import AdaptiveLength, ConfidenceLength, FixedLength, UsageError
from spec2seq.decoding import costs
from spec2seq.decoding.lengths import PassCosts


def chooser(verify: float = 0.0, draft: float = 0.0, cap: int = 16):
    """A pass costs 1 and `verify` for each drafted token; drafting one costs `draft`."""
    return AdaptiveLength(cap).chooser(PassCosts(lambda k: 1 + verify * k, lambda k: draft * k))


def best_by_arithmetic(acceptance: float, verify: float, draft: float, choices) -> int:
    def rate(k: int) -> float:
        return sum(acceptance**j for j in range(k + 1)) / (1 + (verify + draft) * k)

    return max([0, *choices], key=rate)


def teach(rule, acceptance_run: int, drafted: int, times: int = 400) -> None:
    for _ in range(times):
        rule.observe(drafted, acceptance_run)


def test_fixed_and_confidence_are_constant():
    for rule in (FixedLength(3), ConfidenceLength(0.5, 3)):
        running = rule.chooser(None)
        teach(running, 0, 3)
        assert running.choose() == 3


@pytest.mark.parametrize(("verify", "draft"), [(0.0, 0.01), (0.05, 0.1), (0.1, 0.3), (0.2, 0.05)])
def test_the_first_choice_follows_the_arithmetic_of_the_prior(verify, draft):
    running = chooser(verify, draft)
    assert running.choose() == best_by_arithmetic(0.7, verify, draft, running.choices)


def test_free_drafts_that_always_stand_go_to_the_cap():
    running = chooser(verify=0.01, draft=0.0, cap=16)
    teach(running, 16, 16)
    assert running.choose() == 16


def test_it_stops_where_drafting_does_not_pay_and_comes_back():
    running = chooser(verify=0.1, draft=0.2)
    teach(running, 0, 3)
    chosen = [running.choose() for _ in range(100)]
    assert set(chosen) == {0, 2} and chosen.count(2) == 3  # a short draft in every 32 passes
    teach(running, 2, 2)
    assert running.choose() > 0


def test_an_expensive_drafter_is_never_used():
    running = chooser(verify=0.1, draft=2.0)
    assert {running.choose() for _ in range(20)} == {0}


def test_a_position_beyond_what_was_tried_borrows_from_the_one_before():
    running = chooser(verify=0.01, draft=0.01)
    teach(running, 3, 3)
    assert running.choose() > 3


def test_measured_costs_are_positive_grow_and_are_kept():
    verifier, little = tiny.seq2seq("marian").model, tiny.noisy_copy(tiny.seq2seq("marian"), 0.1).drafter()
    measured = costs.measure_costs(verifier, little, 1)
    assert measured.verify(0) > 0 and all(measured.verify(k) > 0 for k in (1, 4, 9, 25))
    assert measured.draft(0) == 0 < measured.draft(1) < measured.draft(8)
    again = costs.measure_costs(verifier, little, 1)
    assert [again.verify(k) for k in range(9)] == [measured.verify(k) for k in range(9)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedLength(-1), lambda: ConfidenceLength(1.5), lambda: ConfidenceLength(-0.1),
        lambda: ConfidenceLength(0.5, 0), lambda: AdaptiveLength(0), lambda: AdaptiveLength(4, confidence=2.0),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(make):
    with pytest.raises(UsageError, match="allowed"):
        make()
