"""Interleaved timing."""

import time
from itertools import pairwise

import torch

from attnzoo.bench.timing import quartiles, time_interleaved, time_ratios

CPU = torch.device("cpu")


def test_every_round_times_each_call_once_in_a_random_order():
    log: list[str] = []

    def call(name: str):
        def slow() -> None:  # one call is long enough for a sample
            log.append(name)
            time.sleep(0.003)

        return slow

    samples = time_interleaved({name: call(name) for name in "abc"}, CPU, seconds=0, min_rounds=20)
    assert {name: len(values) for name, values in samples.items()} == {"a": 20, "b": 20, "c": 20}
    assert all(value > 0 for values in samples.values() for value in values)
    measured = log[6:]  # after two warm-up calls each
    assert all(sorted(measured[i : i + 3]) == list("abc") for i in range(0, 60, 3))
    neighbours = {pair for pair in pairwise(measured) if pair[0] != pair[1]}
    assert len(neighbours) == 6  # every call follows every other


def test_number_of_rounds_grows_with_the_time():
    samples = time_interleaved({"a": lambda: None}, CPU, seconds=0.05)["a"]
    assert 5 < len(samples) <= 50


def test_short_calls_are_repeated_within_a_sample():
    calls = []
    time_interleaved({"a": lambda: calls.append(0)}, CPU, seconds=0)
    assert len(calls) > 100


def test_quartiles_and_ratios_by_hand():
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)
    assert time_ratios([6.0, 1.0], [2.0, 4.0]) == [3.0, 0.25]
