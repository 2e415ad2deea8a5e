"""How far to draft: fixed, by confidence, and by arithmetic on made-up costs."""

import itertools
import math

import pytest
import tiny
from decoding.replay import Replay

from spec2seq import AdaptiveLength, Assisted, ConfidenceLength, FixedLength, Lookup, Speculative, UsageError
from spec2seq.decoding import costs, lengths
from spec2seq.decoding.costs import Costs
from spec2seq.decoding.loop import Engine

CAP = 16
TOOK = lengths._Adaptive.took
ALLOWED = (1, 2, 3, 4, 5, 6, 8, 12, 16)


def made_up(verify_token: float = 0.0, draft_token: float = 0.0) -> Costs:
    """A pass of one token costs 1, each further one `verify_token`, a drafted one `draft_token`."""
    return Costs({1: draft_token, 2: 2 * draft_token}, {0: 1.0, 1: 1 + verify_token})


def adaptive(cap: int, costs: Costs):
    return AdaptiveLength(cap).chooser(lambda: costs)


def after(chooser, chance: float, rows: int = 2_000):
    """The chooser after rows whose every drafted token stood with `chance` if all before it stood."""
    step = 0.0
    for _ in range(rows):  # accepted counts spread evenly over their geometric distribution
        step = (step + 0.618033988749895) % 1
        stands = CAP if chance >= 1 else 0 if chance <= 0 else int(math.log(max(step, 1e-9)) / math.log(chance))
        drafted = chooser.choose()
        if drafted:
            chooser.observe(drafted, min(stands, drafted))
    return chooser


def best_by_arithmetic(chance: float, verify_token: float, draft_token: float) -> int:
    """The k with the most expected tokens per second; k = 0 writes one token at cost 1."""

    def rate(k: int) -> float:
        expected = sum(chance**place for place in range(k + 1))
        return expected / (1 + (verify_token + draft_token) * k)

    return max((0, *ALLOWED), key=rate)


def test_fixed_and_confidence_are_constant():
    for rule, k in ((FixedLength(7), 7), (FixedLength(0), 0), (ConfidenceLength(0.3, 4), 4)):
        chooser = rule.chooser(made_up)
        chooser.observe(5, 0)
        chooser.filled(5, 0)
        assert [chooser.choose() for _ in range(3)] == [k] * 3
    assert FixedLength(7).confidence is None and ConfidenceLength(0.3, 4).confidence == 0.3


@pytest.mark.parametrize("chance", [0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize(
    ("verify_token", "draft_token"), [(0.0, 0.02), (0.05, 0.1), (0.02, 0.3), (0.1, 0.0), (0.3, 0.3)]
)
def test_the_length_that_the_arithmetic_says(chance, verify_token, draft_token):
    chooser = after(adaptive(CAP, made_up(verify_token, draft_token)), chance)
    expected = best_by_arithmetic(chance, verify_token, draft_token)
    near = sorted({0, *ALLOWED})
    # Acceptance is estimated, so the neighbour of the best length will do.
    assert abs(near.index(chooser.best) - near.index(expected)) <= 1


def test_free_and_certain_drafts_are_as_long_as_allowed():
    for cap in (1, 7, 16, 25):
        assert after(adaptive(cap, made_up()), 1.0).best == cap


def test_useless_or_expensive_drafts_are_switched_off():
    assert after(adaptive(CAP, made_up(0.02, 0.1)), 0.0).best == 0
    assert adaptive(CAP, made_up(0.0, 2.0)).choose() == 0
    assert adaptive(CAP, made_up(0.02, 0.1)).choose() > 0  # a new drafter gets its chance


def test_reading_the_sources_is_a_cost_of_drafts():
    cheap = made_up(0.02, 0.1)
    assert after(adaptive(CAP, cheap), 0.5).best > 0
    assert after(adaptive(CAP, Costs(cheap.drafting, cheap.rest, reading=0.5)), 0.5).best == 0


def test_drafts_that_are_short_cost_less():
    """One in ten passes has a draft of 8, all of which stands; the others have none, and looking costs little."""
    chooser = adaptive(8, Costs({1: 0.02}, {0: 1.0, 8: 2.0}))
    for turn in range(2_000):
        k = chooser.choose()
        if k:
            chooser.filled(k, 0 if turn % 10 else k)
            chooser.observe(k, 0 if turn % 10 else k)
    assert chooser.fill < 0.2 and chooser.best == 8


def test_switched_off_its_looks_at_drafts_take_a_hundredth_of_the_time():
    for cap, probe, first in ((CAP, 2, 1600), (1, 1, 800)):  # each of four iterations takes 4 and 2 more than plain
        chooser = adaptive(cap, made_up(0.0, 2.0))
        chosen = [chooser.choose() for _ in range(3 * (first + chooser.STINT - 1))]
        assert chosen == ([0] * (first - 1) + [probe] * chooser.STINT) * 3


def test_cheap_looks_come_sooner_and_unread_sources_are_part_of_them():
    dear = Costs({1: 0.1}, {0: 1.0, 1: 1.02}, reading=0.5)  # of each of 32 tokens
    for seconds, first in ((made_up(0.02, 0.05), 32), (made_up(0.02, 0.1), 48), (dear, 1648)):
        chooser = adaptive(1, seconds)
        for _ in range(200):
            chooser.observe(1, 0)
        chosen = [chooser.choose() for _ in range(2 * first)]
        assert chosen.index(1) + 1 == pytest.approx(first, abs=1)


def test_what_catching_up_takes_makes_looks_rarer(monkeypatch):
    """The first iteration with drafts takes as long as 88 plain ones, and each of the others 4.4: a look is due after
    9,720 iterations."""
    rule = Took(monkeypatch, made_up(0.3, 0.3))
    rule.run(1_000, drafted=2.0, plain=1.0)
    chosen = rule.run(50_000, drafted=2.0, plain=1.0, caught_up=20.0)
    looks = sum(k > 0 and not before for before, k in itertools.pairwise(chosen))
    assert looks in (5, 6)


def test_switched_on_it_tries_a_longer_draft_and_none_in_turn():
    chooser = after(adaptive(CAP, made_up(0.02, 0.05)), 0.7)
    around, turn = [0, *ALLOWED], chooser.LONGER * chooser.PROBE_EVERY + chooser.STINT - 1
    chosen = [chooser.choose() for _ in range(3 * turn)]
    longer = around[around.index(chooser.best) + 1]
    trials = {0: 3 * chooser.STINT, longer: 3 * (chooser.LONGER - 1)}
    assert {k: chosen.count(k) for k in {*chosen} - {chooser.best}} == trials


def test_the_first_looks_at_no_drafts_come_early():
    chooser = adaptive(CAP, made_up(0.02, 0.05))
    best, chosen = chooser.best, [chooser.choose() for _ in range(40)]
    turn = [best] * (chooser.EARLY - 1) + [0] * chooser.STINT
    assert best and chosen == (turn * 4)[:40][: 3 * len(turn)] + [best] * (40 - 3 * len(turn))


class Took:
    """A chooser at work: what its iterations take is so many times what was measured, with drafts and without."""

    def __init__(self, monkeypatch, seconds: Costs):
        monkeypatch.setattr(lengths._Adaptive, "took", TOOK)
        self.chooser, self.seconds, self.chosen = adaptive(CAP, seconds), seconds, []

    def run(self, iterations: int, drafted: float, plain: float, caught_up: float = 1.0) -> list[int]:
        chosen = []
        for _ in range(iterations):
            before, k = (self.chosen or [1])[-1], self.chooser.choose()
            slower = drafted * (1 if before else caught_up) if k else plain
            if k:
                self.chooser.observe(k, k)
            seconds = slower * self.seconds.iteration(k, 1.0)
            self.chooser.took(k, float(k), seconds, seconds)
            chosen.append(k)
            self.chosen.append(k)
        return chosen


def test_what_iterations_take_corrects_what_was_measured(monkeypatch):
    """Drafts that all stand gain a little by the measured seconds, and lose by those of the rows at hand."""
    dear = Took(monkeypatch, made_up(0.3, 0.3))
    chosen = dear.run(200, drafted=2.0, plain=1.0)
    assert chosen[0] and sum(map(bool, chosen[60:])) <= 3  # but for probes
    slow = Took(monkeypatch, made_up(0.3, 0.3))  # a machine that is busy is so for both
    assert sum(map(bool, slow.run(200, drafted=2.0, plain=2.0))) > 150


def test_a_bad_moment_is_forgotten(monkeypatch):
    rule = Took(monkeypatch, made_up(0.3, 0.3))
    rule.run(200, drafted=2.0, plain=1.0)
    assert not rule.chooser.best
    rule.run(100_000, drafted=1.0, plain=1.0)
    assert rule.chooser.best


def test_a_short_draft_is_compared_with_what_a_short_one_takes(monkeypatch):
    """Drafts that come out short, and take what short ones take, are no excess."""
    rule = Took(monkeypatch, made_up(0.3, 0.3))
    for k in [8] * 10 + [0] * 10:
        rule.chooser.took(k, k / 16, rule.seconds.iteration(k, 1 / 16), 1.0)
    assert rule.chooser._excess() == 1.0 and len(rule.chooser.slower[True]) == rule.chooser.LATELY


def test_an_iteration_in_which_the_drafter_catches_up_is_no_measurement(monkeypatch):
    rule = Took(monkeypatch, made_up(0.3, 0.3))
    assert sum(map(bool, rule.run(200, drafted=1.0, plain=1.0, caught_up=20.0))) > 150


def test_the_engine_says_what_its_iterations_took(monkeypatch):
    said: list[tuple[int, float]] = []

    def took(self, k, drafted, seconds, passed):
        if seconds is not None:
            assert 0 < seconds <= passed
            said.append((k, seconds))

    monkeypatch.setattr(lengths._Adaptive, "took", took)
    model = tiny.seq2seq("marian")

    def short():
        return Speculative(model.drafter(), AdaptiveLength(2))

    sources = tiny.sources(model, 3)
    generation = model.generate(sources, short(), max_new_tokens=30, batch_size=2)
    assert said and all(seconds > 0 for _, seconds in said) and any(k for k, _ in said)
    assert sum(seconds for _, seconds in said) < generation.stats.seconds
    said.clear()
    model.generate(sources[:1] * 5, short(), max_new_tokens=30, batch_size=4)
    counted = len(said)
    assert counted  # but the last row alone is not what was measured
    said.clear()
    model.generate(sources[:1] * 4, short(), max_new_tokens=30, batch_size=4)
    assert len(said) == counted


def test_it_returns_when_acceptance_recovers():
    chooser = adaptive(CAP, made_up(0.02, 0.1))
    for _ in range(200):
        chooser.observe(4, 0)
    assert chooser.best == 0
    probes = 0
    for passes in itertools.count():
        assert passes < 200_000
        k = chooser.choose()
        if k:
            probes += 1
            chooser.observe(k, k)  # now all stands
        if chooser.best:
            break
    assert 4 <= probes < 100  # one lucky draft is not enough
    assert after(chooser, 1.0).best == CAP


def test_each_row_of_a_pass_is_an_observation():
    a, b = (adaptive(CAP, made_up()) for _ in range(2))
    for _ in range(16):
        a.observe(4, 1)
    assert (a.tried[:4], a.stood[:3]) != (b.tried[:4], b.stood[:3])
    assert a.tried[0] == pytest.approx(a.stood[0])  # the first token always stood
    assert a.stood[1] == 0 and a.tried[1] == a.tried[0]
    assert a.tried[2] == 0  # nothing was learned behind the rejection


@pytest.fixture
def made_up_seconds(monkeypatch):
    """Every iteration takes what the arithmetic says, whatever it took."""

    def use(seconds: Costs) -> None:
        monkeypatch.setattr(costs, "of_iterations", lambda *given: seconds)

    return use


def test_what_was_learned_stays_with_the_method(made_up_seconds):
    made_up_seconds(made_up(0.02, 0.1))
    model, other = tiny.seq2seq("bart"), tiny.seq2seq("bart", 2)
    method = Assisted(other.drafter())
    first = method.chooser(model.model, 1)
    model.generate(tiny.sources(model, 3), method, max_new_tokens=8, batch_size=1)
    assert method.chooser(model.model, 1) is first and any(first.tried)
    assert method.chooser(model.model, 2) is not first and method.chooser(other.model, 1) is not first


def test_a_model_of_few_positions_is_no_trouble():
    model = tiny.small_positions("bart", 20)
    sources = [source[:6] + [2] for source in tiny.sources(model, 3)]
    done = model.generate(sources, Lookup(), max_new_tokens=12)
    assert done.sequences == model.generate(sources, max_new_tokens=12).sequences


def test_a_good_drafter_gets_longer_drafts(made_up_seconds):
    made_up_seconds(made_up(0.02, 0.1))
    model = tiny.seq2seq("bart")
    sources = tiny.sources(model, 12, 4)
    good, bad = model.drafter(), tiny.seq2seq("bart", 2).drafter()
    done = [model.generate(sources, Assisted(drafter), max_new_tokens=40) for drafter in (good, bad)]
    assert done[0].sequences == done[1].sequences == model.generate(sources, max_new_tokens=40).sequences
    assert len(done[0].stats.drafted_at) == 16 and done[0].stats.acceptance == 1.0
    assert done[1].stats.drafted / done[1].stats.verifier_calls < 0.5 * (
        done[0].stats.drafted / done[0].stats.verifier_calls
    )


def test_drafts_that_come_out_empty_are_learned_from(made_up_seconds):
    """A drafter that finds nothing costs passes over nothing; the length rule must notice."""
    made_up_seconds(made_up(0.2, 0.2))
    model = tiny.seq2seq("bart")
    sources = tiny.sources(model, 12, 4)
    silent = Replay({tuple(source): [] for source in sources})
    done = model.generate(sources, Speculative(silent, AdaptiveLength()), max_new_tokens=60, batch_size=1)
    assert done.sequences == model.generate(sources, max_new_tokens=60).sequences
    assert done.stats.drafted == 0
    # Asked at first, and later only to see whether something has changed.
    assert 8 <= done.stats.drafter_passes < 0.3 * done.stats.verifier_passes


def test_an_end_that_cuts_a_draft_short_teaches_nothing():
    model = tiny.seq2seq("t5")
    sources = tiny.sources(model, 30, 7)
    rows = model.generate(sources, max_new_tokens=20).sequences
    source, row = next((s, r) for s, r in zip(sources, rows, strict=True) if r[-1] == 1 and 3 <= len(r) < 12)
    engine = Engine(model.model, Speculative(Replay({tuple(source): row}), FixedLength(16)), 1)
    seen = []
    engine.chooser = Observer(seen)
    engine.submit(source, 20)
    engine.step()
    assert not engine.busy and seen == [(len(row), len(row))]  # not sixteen places of which most failed


class Observer:
    def __init__(self, seen: list):
        self.seen = seen

    def choose(self) -> int:
        return 16

    def observe(self, asked: int, accepted: int) -> None:
        self.seen.append((asked, accepted))

    def filled(self, asked: int, drafted: int) -> None:
        pass

    def took(self, k: int, drafted: float, seconds: float | None, passed: float) -> None:
        pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedLength(-1), "draft length is -1; allowed: at least 0"),
        (lambda: FixedLength(None), "draft length is None; allowed: whole numbers"),
        (lambda: ConfidenceLength(0.5, None), "draft cap is None; allowed: whole numbers"),
        (lambda: ConfidenceLength(1.5), "confidence threshold is 1.5; allowed: from 0.0 to 1.0"),
        (lambda: ConfidenceLength(0.5, 0), "draft cap is 0; allowed: at least 1"),
        (lambda: AdaptiveLength(0), "draft cap is 0"),
        (lambda: AdaptiveLength(4, -0.1), "confidence threshold is -0.1"),
    ],
)
def test_values_out_of_range(make, message):
    with pytest.raises(UsageError) as error:
        make()
    assert message in str(error.value)
