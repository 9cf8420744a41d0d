"""`bench ops --base REV`: the operators of a commit beside those of the working tree, on the same tensors."""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnzoo.bench import records
from attnzoo.bench.accuracy import TOLERANCES, max_relative_error
from attnzoo.bench.build_worker import MIN_SAMPLE_SECONDS
from attnzoo.bench.builds import Worker, WorkerError, base_and_working_tree, find_commit, take_turns
from attnzoo.bench.operators.base import dtype_name
from attnzoo.bench.operators.benchmark import Measurement
from attnzoo.bench.timing import MAX_ROUNDS, quartiles, time_ratios
from attnzoo.environment import git_state

BASE, TREE = "base", "working tree"
MIN_ROUNDS = 15  # quartiles of fewer rounds are often on one side of 1 by chance
SLOWER, FASTER, SAME = "slower", "faster", "no difference"
DIFFERS = "results differ"


@dataclass(frozen=True)
class Settings:
    """`seconds` is the time per pass of a measurement; no measurement starts after `budget` seconds.

    A ratio that differs from 1 by less than `threshold` is no difference.
    """

    passes: Sequence[str]
    seconds: float
    budget: float
    threshold: float


def run(
    base: str,
    measurements: Sequence[Measurement],
    settings: Settings,
    on_progress: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """The record of all measurements; `on_progress` receives it after every row.

    Raises UserError if `base` is no commit, or if its operators or those of the working tree cannot be built.
    """
    commit = find_commit(base)
    threads = torch.get_num_threads()
    record = records.header("revisions", torch.device("cpu"), ["attnzoo"])
    record |= {"threshold": settings.threshold, "rows": [], "skipped": []}
    with (
        base_and_working_tree(commit) as (base_folder, tree_folder),
        Worker(base_folder, threads) as base_worker,
        Worker(tree_folder, threads) as tree_worker,
    ):
        record["base"] = {"revision": base, **(git_state(base_folder) or {"commit": commit})}
        start = time.monotonic()
        for measurement in measurements:
            if time.monotonic() - start > settings.budget:
                record["skipped"].append(str(measurement))
                continue
            record["rows"] += _measure({BASE: base_worker, TREE: tree_worker}, measurement, settings)
            on_progress(record)
    return record


def _measure(workers: dict[str, Worker], measurement: Measurement, settings: Settings) -> list[dict[str, Any]]:
    """One row per pass."""
    operator = measurement.operator
    case = operator.cases[measurement.case]
    row: dict[str, Any] = {
        "operator": operator.name,
        "case": measurement.case,
        "sizes": str(case),
        "pattern": measurement.pattern,
        "dtype": dtype_name(measurement.dtype),
    }
    try:
        difference = _difference(prepare(workers, measurement))
    except WorkerError as error:
        return [row | {"pass": name, "reason": str(error), "seconds": {}} for name in settings.passes]
    rows = []
    for name in settings.passes:
        backward = name != "forward"
        once = max(worker.time(backward) for worker in workers.values())
        repeats = max(1, math.ceil(MIN_SAMPLE_SECONDS / once))
        seconds = take_turns(workers, backward, repeats, _rounds(settings.seconds))
        rows.append(row | {"pass": name, "reason": None, "seconds": seconds, "difference": difference})
    return rows


def prepare(workers: dict[str, Worker], measurement: Measurement) -> dict[str, list[Tensor]]:
    """Give all workers the same tensors; returns output and gradients of each. Raises WorkerError, with the name."""
    operator, dtype = measurement.operator, measurement.dtype
    case = operator.cases[measurement.case]
    device = torch.device("cpu")
    tensors = operator.inputs(case, measurement.pattern, dtype, device)
    g = torch.Generator().manual_seed(1)
    grad_output = torch.randn(operator.output_shape(case), generator=g).to(dtype)
    results: dict[str, list[Tensor]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        inputs, outputs = Path(scratch, "inputs.pt"), Path(scratch, "outputs.pt")
        torch.save({"tensors": tensors, "grad_output": grad_output}, inputs)
        for name, worker in workers.items():
            try:
                worker.prepare(operator.name, measurement.case, str(case), inputs, outputs)
            except WorkerError as error:
                raise WorkerError(f"{name}: {error}") from None
            results[name] = torch.load(outputs, weights_only=True)
    return results


def _difference(results: dict[str, list[Tensor]]) -> float:
    """By how much outputs and gradients differ, at most, relative to the largest element of each."""
    return max(max_relative_error(new, old) for new, old in zip(results[TREE], results[BASE], strict=True))


def _rounds(seconds: float) -> Iterator[int]:
    """As many rounds as fit into `seconds`, from MIN_ROUNDS to MAX_ROUNDS."""
    start = time.perf_counter()
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and time.perf_counter() - start > seconds:
            return
        yield number


def verdict(row: dict[str, Any], threshold: float) -> str:
    """What a row says: both quartiles of the ratio, base over working tree, must be beyond the threshold."""
    if row["difference"] > TOLERANCES[getattr(torch, row["dtype"])]:
        return DIFFERS
    low, _, high = quartiles(time_ratios(row["seconds"][BASE], row["seconds"][TREE]))
    if high < 1 - threshold:
        return SLOWER
    return FASTER if low > 1 + threshold else SAME


def failures(record: dict[str, Any]) -> list[str]:
    """Measurements in which the working tree is slower, or fails."""
    found = []
    for row in record["rows"]:
        name = f"{row['operator']} {row['case']} {row['pattern']} {row['dtype']} {row['pass']}"
        if row["reason"] and row["reason"].startswith(TREE):
            found.append(f"FAILED: {name}: {row['reason']}")
        elif not row["reason"] and verdict(row, record["threshold"]) == SLOWER:
            found.append(f"SLOWER than {record['base']['revision']}: {name}")
    return found
