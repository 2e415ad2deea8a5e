import statistics

import pytest
import torch

from spec2seq.errors import UsageError
from spec2seq.evaluation.timing import Spread, Timings, interleave, set_threads


class Machine:
    """A clock that moves only when something is called, and by how much that is said to cost."""

    def __init__(self):
        self.now = 100.0
        self.calls = []

    def clock(self):
        return self.now

    def work(self, name, cost):
        def call():
            self.calls.append(name)
            self.now += cost(len(self.calls)) if callable(cost) else cost

        return call


def test_each_round_times_every_callable_once_and_the_warmup_is_not_counted():
    machine = Machine()
    names = {"a": machine.work("a", 2.0), "b": machine.work("b", 1.0), "c": machine.work("c", 4.0)}
    timings = interleave(names, rounds=4, warmup=2, clock=machine.clock)
    assert timings.seconds == {"a": [2.0] * 4, "b": [1.0] * 4, "c": [4.0] * 4}
    assert len(machine.calls) == 3 * (4 + 2)
    assert timings.median("c") == timings.least("c") == 4.0
    assert timings.speedup("b", "a") == Spread(2.0, 2.0, 2.0)
    assert timings.speedup("a", "a") == Spread(1.0, 1.0, 1.0)


def test_the_order_changes_between_rounds_so_that_none_always_follows_the_same_one():
    machine = Machine()
    interleave({name: machine.work(name, 1.0) for name in "abc"}, rounds=6, warmup=0, clock=machine.clock)
    rounds = ["".join(machine.calls[start : start + 3]) for start in range(0, 18, 3)]
    assert all(sorted(order) == list("abc") for order in rounds)
    assert {order[0] for order in rounds} == set("abc")
    follows = {(x, y) for order in rounds for x, y in zip(order, order[1:], strict=False)}
    assert follows == {(x, y) for x in "abc" for y in "abc" if x != y}


def test_ratios_are_taken_within_a_round_so_that_a_slow_round_does_not_count():
    # In the third of five rounds the machine is ten times slower: the ratio stays what it is.
    seconds = {"greedy": [2.0, 2.0, 20.0, 2.0, 2.0], "fast": [1.0, 1.0, 10.0, 1.0, 1.0]}
    assert Timings(seconds).speedup("fast", "greedy") == Spread(2.0, 2.0, 2.0)


def test_spread_is_median_and_quartiles():
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert Spread.of(values) == Spread(3.0, 2.0, 4.0)
    assert Spread.of(values).median == statistics.median(values)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    assert Spread.of([1.0, 2.0]).as_dict() == {"median": 1.5, "low": 1.25, "high": 1.75}
    with pytest.raises(ValueError):
        Spread.of([])


def test_after_is_called_outside_of_the_time():
    machine = Machine()

    def after():
        machine.now += 1000.0

    timings = interleave({"a": machine.work("a", 1.0)}, rounds=2, warmup=1, clock=machine.clock, after=after)
    assert timings.seconds == {"a": [1.0, 1.0]}


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"rounds": 1, "warmup": -1}])
def test_wrong_counts_are_named(wrong):
    with pytest.raises(UsageError, match="rounds|warmup"):
        interleave({"a": lambda: None}, **wrong)


def test_nothing_to_time_is_an_error():
    with pytest.raises(UsageError, match="nothing to time"):
        interleave({}, rounds=1)


def test_threads_are_set_and_returned():
    before = torch.get_num_threads()
    try:
        assert set_threads(1) == 1 == torch.get_num_threads()
        assert set_threads(None) == 1
        with pytest.raises(UsageError, match="threads is 0"):
            set_threads(0)
    finally:
        torch.set_num_threads(before)
