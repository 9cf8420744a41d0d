"""Fraction of a training step spent in library ops that attnzoo and transformers share (matmul, convolution, AdamW).

python tools/profile_training_step.py [--threads N] [--rounds N] [--json FILE] [MODEL ...]

The time of these ops in transformers' step bounds the speedup that `python -m attnzoo bench models` can show. Each
round times a step of each implementation, then one with every op timed.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attnzoo.bench import records
from attnzoo.bench.models import benchmark
from attnzoo.bench.models.detectors import DETECTION, TRANSFORMERS
from attnzoo.bench.operators.base import OURS
from attnzoo.bench.tables import TextTable

LIBRARY_OPS = ("mm", "addmm", "convolution", "convolution_backward", "_fused_adamw_")


class LibraryTimeMode(TorchDispatchMode):
    """Sums up the seconds of LIBRARY_OPS."""

    seconds = 0.0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        result = op(*args, **(kwargs or {}))
        if op._schema.name.removeprefix("aten::") in LIBRARY_OPS:
            self.seconds += time.perf_counter() - start
        return result


def measure(model_name: str, rounds: int) -> dict[str, Any]:
    """Seconds of whole steps and of the library ops in them, of both implementations, round by round."""
    device = torch.device("cpu")
    batch, *size = DETECTION.training
    models, missing = DETECTION.build_models(model_name, False, device)
    if missing:
        raise SystemExit(missing)
    images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))
    targets = DETECTION.make_targets(batch, device)
    steps = {name: benchmark.make_train_step(model, images, targets) for name, model in models.items()}
    seconds: dict[str, Any] = {name: {"step": [], "library": []} for name in steps}
    for step in (*steps.values(), *steps.values()):
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name]["step"].append(_time(step))
            with LibraryTimeMode() as library:
                step()
            seconds[name]["library"].append(library.seconds)
    workload = f"{benchmark.TRAINING}, {batch} x {size[0]}x{size[1]}"
    return {"model": model_name, "workload": workload, "implementations": seconds}


def _time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def make_table(rows: Sequence[dict[str, Any]]) -> TextTable:
    """Medians; the last column is the median over rounds of their whole step over the library ops in it."""
    cells = []
    for row in rows:
        ours, theirs = (row["implementations"][name] for name in (OURS, TRANSFORMERS))
        max_speedup = median(step / library for step, library in zip(theirs["step"], theirs["library"], strict=True))
        parts = [f"{median(side['library']):.2f} of {median(side['step']):.2f} s" for side in (ours, theirs)]
        cells.append((row["model"], *parts, f"{max_speedup:.2f}"))
    header = ("model", "library ops in ours", "library ops in transformers", "maximum speedup")
    return TextTable("library ops in a training step", header, cells, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("models", nargs="*", default=["deformable_detr_r50", "detr_r50"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record = records.header("training step profile", torch.device("cpu"), ["attnzoo", TRANSFORMERS])
    record["rows"] = [measure(name, args.rounds) for name in args.models]
    if args.json:
        records.write(args.json, record)
    print(make_table(record["rows"]).markdown())


if __name__ == "__main__":
    main()
