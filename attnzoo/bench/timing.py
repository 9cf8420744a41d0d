"""Interleaved timing: noise affects all implementations equally, so their ratios are reliable."""

import math
import time
from collections.abc import Callable, Mapping
from random import Random
from statistics import quantiles

import torch

MIN_ROUNDS, MAX_ROUNDS = 5, 50
MIN_SAMPLE_SECONDS = 2e-3  # shorter calls are repeated within a sample, well above the resolution of the clock


def time_interleaved(
    calls: Mapping[str, Callable[[], object]], device: torch.device, seconds: float, min_rounds: int = MIN_ROUNDS
) -> dict[str, list[float]]:
    """Samples of seconds per call.

    Every round times each call once in a seeded random order, so that effects of the previous call (caches, memory
    returned to the system) average out. Runs as many rounds as fit into `seconds`, at least `min_rounds` and at most
    MAX_ROUNDS, after two warm-up calls each.
    """
    repeats = {name: _repeats(call, device) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = Random(0).shuffle
    start = time.perf_counter()
    for round_index in range(max(MAX_ROUNDS, min_rounds)):
        if not order or (round_index >= min_rounds and time.perf_counter() - start > seconds):
            break
        shuffle(order)
        for name in order:
            samples[name].append(time_calls(calls[name], repeats[name], device))
    return samples


def _repeats(call: Callable[[], object], device: torch.device) -> int:
    time_calls(call, 1, device)
    return max(1, math.ceil(MIN_SAMPLE_SECONDS / time_calls(call, 1, device)))


def time_calls(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Mean seconds per call over `repeats` calls; by CUDA events on a GPU."""
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


def time_ratios(theirs: list[float], ours: list[float]) -> list[float]:
    """Their time over ours, round by round."""
    return [their / our for their, our in zip(theirs, ours, strict=True)]
