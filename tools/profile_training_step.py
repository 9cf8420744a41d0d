"""How much of a detector's training step the libraries take that it shares with transformers' version of it.

python tools/profile_training_step.py [--threads N] [--rounds N] [--json FILE] [MODEL ...]

Convolutions, matrix products and AdamW come from the same libraries in both, so their time in the other's step bounds
the ratio that `python -m attnzoo bench models` can show. Each round times a step of each, then one with every operation
timed.
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
from attnzoo.bench.models.detectors import DETECTORS, THEIRS
from attnzoo.bench.operators.peers import OURS

SHARED = ("mm", "addmm", "convolution", "convolution_backward", "_fused_adamw_")


class Shared(TorchDispatchMode):
    """Adds up the seconds of the operations in SHARED."""

    seconds = 0.0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        started = time.perf_counter()
        result = operation(*args, **(kwargs or {}))
        if operation._schema.name.removeprefix("aten::") in SHARED:
            self.seconds += time.perf_counter() - started
        return result


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of whole steps and of what is shared in them, of both, round by round."""
    device = torch.device("cpu")
    batch, *size = DETECTORS.training
    found, missing = DETECTORS.entrants(name, False, device)
    if missing:
        raise SystemExit(missing)
    images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))
    targets = DETECTORS.targets(batch, device)
    steps = {who: benchmark.step(entrant, images, targets) for who, entrant in found.items()}
    result: dict[str, Any] = {who: {"step": [], "shared": []} for who in steps}
    for call in (*steps.values(), *steps.values()):
        call()
    for _ in range(rounds):
        for who, call in steps.items():
            result[who]["step"].append(_seconds(call))
            with Shared() as shared:
                call()
            result[who]["shared"].append(shared.seconds)
    return {"model": name, "work": f"training step, {batch} x {size[0]}x{size[1]}", "implementations": result}


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def table(rows: Sequence[dict[str, Any]]) -> records.Rows:
    """Medians; the last column is the median over rounds of their whole step over what is shared in it."""
    cells = []
    for row in rows:
        ours, theirs = (row["implementations"][who] for who in (OURS, THEIRS))
        bound = median(step / shared for step, shared in zip(theirs["step"], theirs["shared"], strict=True))
        parts = [f"{median(each['shared']):.2f} of {median(each['step']):.2f} s" for each in (ours, theirs)]
        cells.append((row["model"], *parts, f"{bound:.2f}"))
    header = ("model", "shared in ours", "shared in transformers'", "their step over what is shared in it")
    return records.Rows("shares of a training step", header, cells, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Shares of a training step", allow_abbrev=False)
    parser.add_argument("models", nargs="*", default=["deformable_detr_r50", "detr_r50"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    result = records.header("step shares", torch.device("cpu"), ["attnzoo", THEIRS])
    result["rows"] = [measure(name, given.rounds) for name in given.models]
    if given.json:
        records.write(given.json, result)
    print(table(result["rows"]).markdown())


if __name__ == "__main__":
    main()
