"""Training speed of the demo in this source tree beside another commit: data and step, one thread, on the CPU.

python tools/benchmark_training.py --base REV [--rounds N] [--set KEY=VALUE ...] [--json FILE]

REV is checked out into a temporary git worktree, where its operators are built. Each tree trains in a process of its
own; they take turns, BLOCK steps each, while the other waits. The first epoch, in which images are read from their
files, is reported apart.
"""

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = "experiments/ablate_points.yaml"
DEFAULTS = ("model.encoder.attention.points=4", "model.decoder.attention.points=4", "train.steps=4000")
BLOCK, ROUND = 20, 200  # steps
FIRST_EPOCH, LATER = "first epoch", "later epochs"
BASE, NEW = "base", "this tree"


class Worker:
    """A process that trains the code in `folder`."""

    def __init__(self, folder: Path, overrides: Sequence[str]):
        command = [sys.executable, "-P", __file__, "--worker", *(f"--set={override}" for override in overrides)]
        variables = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, cwd=folder, env=variables, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.model: dict[str, Any] = self._read()

    def train(self, steps: int) -> dict[str, float]:
        """Train `steps` more steps; returns seconds, seconds of CPU time and page faults."""
        assert self._process.stdin
        print(steps, file=self._process.stdin, flush=True)
        return self._read()

    def stop(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):  # else a message, such as that data is generated
                return dict(json.loads(line))
        sys.exit(f"error: the worker has ended: {self._process.args!r}")


def worker_main(overrides: Sequence[str]) -> None:
    """Train the numbers of steps that standard input names; results and a description of the model go to stdout."""
    try:
        from attnzoo.worker.malloc import restart_with_tunables
    except ImportError:  # earlier commits have no such settings
        pass
    else:
        restart_with_tunables()
    import torch

    torch.set_num_threads(1)
    trainer, count_macs = build_trainer(overrides)
    image = trainer.task.val[0][0][None]
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    with torch.no_grad():
        macs = count_macs(trainer.model.eval(), image)
    epoch = trainer.steps_per_epoch
    batch_size = len(trainer.task.train) // epoch
    print(json.dumps({"parameters": parameters, "macs": macs, "epoch": epoch, "batch_size": batch_size}), flush=True)
    batches = iter(trainer.task.batches(0, epoch))
    for line in sys.stdin:
        start = (time.perf_counter(), time.process_time(), page_faults())
        for _ in range(int(line)):
            trainer._train_step(list(islice(batches, 1)))
        end = (time.perf_counter(), time.process_time(), page_faults())
        names = ("seconds", "cpu_seconds", "page_faults")
        print(json.dumps({name: b - a for name, a, b in zip(names, start, end, strict=True)}), flush=True)


def build_trainer(overrides: Sequence[str]) -> tuple[Any, Any]:
    """The trainer of the demo's experiment and the function that counts MACs, of the attnzoo on the path."""
    import torch

    load = first_import("attnzoo.config.load:load", "attnzoo.config:load")
    checkpoints = first_import("attnzoo.engine.checkpoint:CheckpointManager", "attnzoo.engine.checkpoint:Checkpoints")
    context = first_import("attnzoo.engine.distributed:DistContext", "attnzoo.engine.distributed:Ranks")
    stop = first_import("attnzoo.engine.interrupt:GracefulStop", "attnzoo.engine.interrupt:StopRequest")
    trainer = first_import("attnzoo.engine.trainer:Trainer", "attnzoo.engine.loop:Trainer")
    build_task = first_import("attnzoo.worker.tasks:build_task", "attnzoo.engine.tasks:build_task")
    count_macs = first_import("attnzoo.models.cost:count_macs", "attnzoo.inspect.cost:count_macs")
    config, alone = load(EXPERIMENT, [*DEFAULTS, *overrides]), context(0, 1, torch.device("cpu"))
    task = build_task(config, alone)
    folder = checkpoints(Path(tempfile.gettempdir()))  # nothing is saved
    return trainer(task, config.train, alone, folder, None, stop(), config.seed), count_macs


def first_import(*places: str) -> Any:
    """The first of `module:name` that exists: later commits have renamed it."""
    for place in places:
        module, name = place.split(":")
        with suppress(ImportError, AttributeError):
            return getattr(importlib.import_module(module), name)
    raise SystemExit(f"none of {', '.join(places)} exists in this commit")


def page_faults() -> int:
    """Page faults of this process so far: each brings in a page of fresh memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def compare(workers: dict[str, Worker], steps: int) -> dict[str, dict[str, float]]:
    """Train all workers for `steps` steps in turns of BLOCK; the sums per worker."""
    totals: dict[str, dict[str, float]] = {name: {} for name in workers}
    for block in range(0, steps, BLOCK):
        turns = list(workers.items())
        for name, worker in turns if block // BLOCK % 2 == 0 else reversed(turns):
            for key, value in worker.train(min(BLOCK, steps - block)).items():
                totals[name][key] = totals[name].get(key, 0) + value
    return {name: {"steps": steps, **sums} for name, sums in totals.items()}


def measure(workers: dict[str, Worker], rounds: int) -> list[dict[str, Any]]:
    """The rounds of the first epoch, as many as fit into it, and `rounds` of later ones."""
    epoch = next(iter(workers.values())).model["epoch"]
    compare(workers, BLOCK)  # not counted: allocations, choice of algorithms
    num_first = min((epoch - BLOCK) // ROUND, rounds)
    rows = [{"part": FIRST_EPOCH, "workers": compare(workers, ROUND)} for _ in range(num_first)]
    compare(workers, epoch - BLOCK - num_first * ROUND)
    return rows + [{"part": LATER, "workers": compare(workers, ROUND)} for _ in range(rounds)]


def summary(rows: Sequence[dict[str, Any]], batch_size: int) -> str:
    """Images per second, by the clock and per second of CPU time: median and quartiles over rounds."""
    lines = ["| | seconds of | base | this tree | ratio per round |", "|---|---|---|---|---|"]
    for part in (FIRST_EPOCH, LATER):
        workers = [row["workers"] for row in rows if row["part"] == part]
        for key, name in (("seconds", "clock"), ("cpu_seconds", "CPU time")):
            rates = {side: [batch_size * w[side]["steps"] / w[side][key] for w in workers] for side in (BASE, NEW)}
            ratios = [new / base for base, new in zip(rates[BASE], rates[NEW], strict=True)]
            cells = (quartiles(rates[BASE], ".0f"), quartiles(rates[NEW], ".0f"), quartiles(ratios, ".2f"))
            lines.append(f"| {part} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def quartiles(values: Sequence[float], spec: str) -> str:
    """Median (quartiles) of `values`."""
    if len(values) < 2:
        return "".join(format(value, spec) for value in values)
    low, _, high = quantiles(values, n=4, method="inclusive")
    return f"{median(values):{spec}} ({low:{spec}} to {high:{spec}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--base", metavar="REV", help="commit to compare with")
    parser.add_argument("--rounds", type=int, default=8, help=f"rounds of {ROUND} steps after the first epoch")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override of the experiment")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker_main(args.set)
        return
    if args.base is None:
        parser.error("the following arguments are required: --base")
    import torch

    from attnzoo.bench import builds, records
    from attnzoo.environment import git_state

    torch.set_num_threads(1)
    record = records.header("training speed", torch.device("cpu"), ["attnzoo", "timm"])
    record["instruction_set"] = torch.backends.cpu.get_cpu_capability()
    with builds.checkout(builds.find_commit(args.base)) as folder:
        builds.build(folder)
        record["base"] = git_state(folder)
        workers = {BASE: Worker(folder, args.set), NEW: Worker(ROOT, args.set)}
        models = {name: worker.model for name, worker in workers.items()}
        if models[BASE] != models[NEW]:
            sys.exit(f"error: the models differ: {models}")
        record |= {"experiment": EXPERIMENT, "overrides": [*DEFAULTS, *args.set], "model": models[NEW]}
        record["rows"] = measure(workers, args.rounds)
        for worker in workers.values():
            worker.stop()
    if args.json:
        records.write(args.json, record)
    print(summary(record["rows"], models[NEW]["batch_size"]))


if __name__ == "__main__":
    main()
