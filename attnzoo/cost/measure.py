"""Measures all variants in one process, interleaved: in every round each is timed once, in random order."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from attnzoo import ops
from attnzoo.bench import memory, records
from attnzoo.bench.timing import time_interleaved
from attnzoo.cost.count import CONVENTION, count
from attnzoo.cost.step import Calls
from attnzoo.cost.subject import Subject
from attnzoo.environment import sources_hash
from attnzoo.rundir.costs import Costs, VariantCosts

SECONDS = 60.0  # for all variants
MIN_ROUNDS = 3
WARMUP_CALLS = 2  # of time_interleaved
SHORT_SECONDS = 2.0
# The measured calls, and their shares of the time that is left after warm-up and memory.
TIMINGS: dict[str, tuple[Callable[[Calls], object], float]] = {
    "latency": (Calls.infer_one, 1.0),
    "throughput": (Calls.infer_batch, 1.0),
    "training": (Calls.train_step, 2.0),
}
MEMORY = {"inference_memory": "throughput", "training_memory": "training"}
TITLES = {"latency": "latency", "throughput": "throughput", "training": "training step"}
TRAINING_TO_INFERENCE = 4  # about how many times as long a training step takes as inference, before it has run
# Time of measuring peak memory, in calls: four, each about twice as slow, since it returns all memory to the system.
MEMORY_CALLS = 8


def measure_costs(
    subjects: Mapping[str, Subject], baseline: str, device: torch.device, seconds: float = SECONDS
) -> Costs:
    """The costs of variants by name, in about `seconds`; variants that cost the same are measured once.

    In the fixed time run as many rounds as fit, at least three; what does not fit is not measured, and `notes` says so,
    but the latency always is.
    With 0 seconds only parameters and FLOPs are counted. Threads are those of torch. Raises UserError for a model that
    cannot be built.
    """
    start = time.perf_counter()
    distinct = {subject.cost_key: (name, subject) for name, subject in subjects.items()}
    counted = {key: count(name, subject) for key, (name, subject) in distinct.items()}
    notes: list[str] = []
    if seconds > 0:
        calls = {key: Calls(subject, device) for key, (_, subject) in distinct.items()}
        measured = _Measurement(calls, device, start, seconds, notes).run()
        counted = {key: replace(costs, **measured[key]) for key, costs in counted.items()}
    variants = tuple(
        replace(counted[subject.cost_key], name=name, digest=subject.digest) for name, subject in subjects.items()
    )
    return Costs(
        baseline=baseline,
        variants=variants,
        notes=(*notes, *_repeats(subjects), *_differences(variants)),
        seconds=round(time.perf_counter() - start, 1),
        environment=_environment(device),
    )


class _Measurement:
    """Times and peak memory of several models, until `budget` seconds after `start` by time.perf_counter."""

    def __init__(self, calls: Mapping[str, Calls], device: torch.device, start: float, budget: float, notes: list[str]):
        self.calls, self.device, self.budget, self.notes = calls, device, budget, notes
        self.deadline = start + budget
        self.seconds: dict[str, float] = {}  # per call of all models together, by timing
        self.fields: dict[str, dict[str, Any]] = {key: {} for key in calls}

    def run(self) -> dict[str, dict[str, Any]]:
        """Fields of VariantCosts by model."""
        for timing in TIMINGS:
            self._warm_up(timing)
        for field, timing in MEMORY.items():
            if timing in self.seconds and self._fits(f"peak memory ({TITLES[timing]})", self._memory_seconds(timing)):
                for key, calls in self.calls.items():
                    self.fields[key][field] = memory.peak_memory(partial(TIMINGS[timing][0], calls), self.device)
        while self.seconds:
            timing = min(self.seconds, key=list(TIMINGS).index)
            self._time(timing)
            del self.seconds[timing]
        return self.fields

    def _warm_up(self, timing: str) -> None:
        """Run each model once, unless three rounds are not expected to fit; those of the latency always run."""
        if not self._fits(TITLES[timing], (1 + WARMUP_CALLS + MIN_ROUNDS) * self._expected(timing)):
            return
        seconds = self._run_once(timing)
        if seconds < SHORT_SECONDS:  # the first call also selects algorithms
            seconds = self._run_once(timing)
        if timing == "latency" or self._fits(TITLES[timing], (WARMUP_CALLS + MIN_ROUNDS) * seconds):
            self.seconds[timing] = seconds

    def _run_once(self, timing: str) -> float:
        start = time.perf_counter()
        for calls in self.calls.values():
            TIMINGS[timing][0](calls)
        return time.perf_counter() - start

    def _expected(self, timing: str) -> float:
        """About how long a call of all models together takes."""
        if timing == "latency":
            return 0.0
        if timing == "training":
            return TRAINING_TO_INFERENCE * self.seconds.get("throughput", self._expected("throughput"))
        # A GPU takes little longer for a batch than for one image, unless the images are large.
        batch = max(calls.subject.batch_size for calls in self.calls.values()) if self.device.type == "cpu" else 1
        return batch * self.seconds["latency"]

    def _memory_seconds(self, timing: str) -> float:
        """About how long measuring peak memory takes: on the CPU in a process with a single thread."""
        slower = MEMORY_CALLS * torch.get_num_threads() if self.device.type == "cpu" else 1
        return slower * self.seconds[timing]

    def _fits(self, title: str, seconds: float) -> bool:
        """Whether what takes about `seconds` fits before the deadline, with three rounds of what has run already."""
        rounds = sum(self.seconds.values()) * (WARMUP_CALLS + MIN_ROUNDS)
        left = max(self.deadline - time.perf_counter() - rounds, 0.0)
        if seconds > left:
            self.notes.append(
                f"{title}: not measured; that takes about {math.ceil(seconds)} s, and of {self.budget:g} s only "
                f"{left:.0f} s are left for it (--seconds)."
            )
        return seconds <= left

    def _time(self, timing: str) -> None:
        weights = {name: TIMINGS[name][1] for name in self.seconds}
        share = weights[timing] / sum(weights.values()) * (self.deadline - time.perf_counter())
        # The last round starts before the end of `seconds` and ends after it.
        seconds = max(share - self.seconds[timing] * (WARMUP_CALLS + 1), 0.0)
        bound = {key: partial(TIMINGS[timing][0], calls) for key, calls in self.calls.items()}
        for key, samples in time_interleaved(bound, self.device, seconds, MIN_ROUNDS).items():
            self.fields[key][timing] = tuple(samples)


def _repeats(subjects: Mapping[str, Subject]) -> list[str]:
    """Notes on variants that were measured once."""
    groups: dict[str, list[str]] = {}
    for name, subject in subjects.items():
        groups.setdefault(subject.cost_key, []).append(name)
    return [f"Equal in cost, measured once: {', '.join(names)}." for names in groups.values() if len(names) > 1]


def _differences(variants: tuple[VariantCosts, ...]) -> list[str]:
    """Notes on what makes variants incomparable."""
    sizes = dict.fromkeys("x".join(map(str, variant.size)) for variant in variants)
    batches = dict.fromkeys(str(variant.batch_size) for variant in variants)
    notes = []
    if len(sizes) > 1:
        notes.append(f"Warning: image sizes differ ({', '.join(sizes)}).")
    if len(batches) > 1:
        notes.append(f"Warning: batch sizes differ ({', '.join(batches)}).")
    return notes


def _environment(device: torch.device) -> dict[str, Any]:
    """Command, machine, versions, kernels and sources of this process."""
    header = records.header("costs", device, ["attnzoo", "timm"])
    return header | {
        "operators": ops.kernels(device.type),
        "sources": sources_hash(),
        "memory": memory.METHODS[device.type],
        "convention": CONVENTION,
    }
