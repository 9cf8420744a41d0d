"""Timing several implementations side by side: what disturbs one disturbs all."""

import math
import time
from collections.abc import Callable, Mapping
from random import Random
from statistics import quantiles

import torch

FEWEST, MOST = 5, 50  # rounds
SHORTEST = 2e-3  # seconds: quicker calls are timed several at a time, to stay well above what a clock resolves


def interleave(
    calls: Mapping[str, Callable[[], object]], device: torch.device, seconds: float, fewest: int = FEWEST
) -> dict[str, list[float]]:
    """Seconds per call, several samples of each.

    Every round takes one sample of each call, in an order of its own, the same in every process: a call pays for what
    the one before left behind, caches and memory given back to the system, so nobody may always follow the same one.
    There are as many rounds as fit into `seconds`, but `fewest` at least and 50 at most. Each call has run twice before
    its time counts.
    """
    repeats = {name: _repeats(call, device) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = Random(0).shuffle
    start = time.perf_counter()
    for done in range(max(MOST, fewest)):
        if not order or (done >= fewest and time.perf_counter() - start > seconds):
            break
        shuffle(order)
        for name in order:
            samples[name].append(time_calls(calls[name], repeats[name], device))
    return samples


def _repeats(call: Callable[[], object], device: torch.device) -> int:
    time_calls(call, 1, device)
    return max(1, math.ceil(SHORTEST / time_calls(call, 1, device)))


def time_calls(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds per call of `repeats` calls in a row; on a GPU by events, so that only its own time counts."""
    if device.type == "cuda":
        return _time_on_gpu(call, repeats)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _time_on_gpu(call: Callable[[], object], repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / repeats


def quartiles(samples: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    low, middle, high = quantiles(samples, n=4, method="inclusive")
    return low, middle, high


def ratios(theirs: list[float], ours: list[float]) -> list[float]:
    """How many times longer theirs took, round by round."""
    return [their / our for their, our in zip(theirs, ours, strict=True)]
