"""Time of `attnzoo compare` on a sweep of 200 finished runs, with the page and TensorBoard's files.

python tools/benchmark_compare.py [--repetitions N] [--json FILE] [--keep FOLDER]

The sweep is that of the demo with 5 variants and 40 seeds, evaluated every 100 of 800 steps. Configs, ledger, status
and attempts are written by the code of a sweep; the metrics have the keys of a training, and random values. The command
must not import torch.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from attnzoo import ops
from attnzoo.bench import records
from attnzoo.config.load import Experiment
from attnzoo.environment import collect_environment, result_environment
from attnzoo.rundir import attempts
from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep.check_runs import check_runs
from attnzoo.sweep.expand import expand
from attnzoo.sweep.folder import SweepFolder

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = ROOT / "experiments" / "ablate_points.yaml"
POINTS, SEEDS, STEPS, INTERVAL = [1, 2, 4, 8, 16], 40, 800, 100
OVERRIDES = [
    "sweep.variants={}",
    "sweep.baseline=points=1",
    f"sweep.zip={{model.encoder.attention.points: {POINTS}, model.decoder.attention.points: {POINTS}}}",
    f"sweep.seeds={list(range(SEEDS))}",
    f"train.steps={STEPS}",
    f"train.eval_every={INTERVAL}",
]
LOSSES = [f"loss_{part}{suffix}" for suffix in ("_0", "", "_encoder") for part in ("class", "l1", "giou")]
OUTPUTS = ("comparison.md", "comparison.csv", "comparison.html", "events.out.tfevents.*")


def create(output: Path, overrides: Sequence[str] = ()) -> Path:
    """Write the folders of the finished runs, as a sweep does; returns the folder of the sweep."""
    experiment = Experiment(EXPERIMENT, [*OVERRIDES, f"output={output}", *overrides])
    sweep = SweepFolder(output / "ablate_points")
    runs = sweep.assign(check_runs(experiment, expand(experiment)))
    sweep.create(runs, str(EXPERIMENT))
    device = torch.device("cpu")
    environment = result_environment(device, ops.kernels(device.type))
    collected = json.dumps(collect_environment(device, 1), indent=1)
    for number, run in enumerate(runs):
        attempts.record_start(run.folder, 0, 0, environment)
        rows = metrics(random.Random(number))
        run.folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        run.folder.environment.write_text(collected, encoding="utf-8")
        finish(run.folder, rows[-1])
        attempts.record_end(run.folder, "done")
    return sweep.path


def metrics(generator: random.Random) -> list[dict[str, float]]:
    """The rows of metrics.jsonl of a training of STEPS steps, with random values."""
    rows: list[dict[str, float]] = [{"step": 0, "cost/params": 241138, "cost/gflops": 0.02, "cost/ms": 5.0}]
    for step in range(INTERVAL, STEPS + 1, INTERVAL):
        losses = {f"train/{name}": generator.random() for name in ("loss", *LOSSES, "grad_norm", "lr")}
        rows.append({"step": step, **losses, "speed/images_per_second": 150.0, "speed/peak_mib": 900.0})
        scores = {f"val/{name}": generator.random() for name in ("AP", "AP50", "loss", *LOSSES)}
        rows.append({"step": step, **scores})
    return rows


def finish(run: RunFolder, row: dict[str, float]) -> None:
    run.write_status(state="done", step=STEPS, steps=STEPS, AP=row["val/AP"], AP50=row["val/AP50"])


def command(sweep: Path, *options: str) -> list[str]:
    return [sys.executable, *options, "-m", "attnzoo", "compare", str(sweep)]


def variables() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def check_imports(sweep: Path) -> list[str]:
    """The packages that the command imports; ends this program if torch is one of them."""
    ended = subprocess.run(
        command(sweep, "-X", "importtime"), env=variables(), capture_output=True, text=True, check=True
    )
    modules = re.findall(r"^import time:\s+\d+ \|\s+\d+ \| +(\S+)$", ended.stderr, re.MULTILINE)
    packages = sorted({module.partition(".")[0] for module in modules} - sys.stdlib_module_names)
    if "attnzoo" not in packages or "torch" in packages:
        sys.exit(f"error: expected attnzoo without torch among the imported packages: {packages}")
    return packages


def measure(sweep: Path) -> dict[str, float]:
    """Seconds by the clock, and of CPU time in user and kernel mode, of one comparison that writes everything anew."""
    for pattern in OUTPUTS:
        for path in [*sweep.glob(pattern), *sweep.glob(f"*/{pattern}")]:
            path.unlink()
    start = time.perf_counter()
    process = subprocess.Popen(command(sweep), env=variables(), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    written = {path.parent for path in sweep.glob("*/events.out.tfevents.*")}
    without = {path.parent for path in sweep.glob("*/config.yaml")} - written
    missing = [pattern for pattern in OUTPUTS if not list(sweep.glob(pattern))]
    if process.returncode or missing or without:
        sys.exit(f"error: exit code {process.returncode}, not written: {missing}, event files of {len(without)} runs")
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "user": usage.ru_utime, "system": usage.ru_stime}


def summary(rows: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median and quartiles over the repetitions."""
    found = {}
    for key in ("seconds", "cpu_seconds"):
        low, _, high = quantiles([row[key] for row in rows], n=4, method="inclusive")
        found[key] = {"median": median(row[key] for row in rows), "lower_quartile": low, "upper_quartile": high}
    return found


@contextmanager
def folder(kept: Path | None) -> Iterator[Path]:
    """`kept`, or a temporary folder."""
    if kept is not None:
        yield kept
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder for the runs, which is kept")
    args = parser.parse_args()
    if args.repetitions < 2:
        parser.error(f"--repetitions {args.repetitions}: expected 2 or more")
    packages = ["attnzoo", "numpy", "scipy", "omegaconf", "tensorboard", "rich", "jinja2"]
    record: dict[str, Any] = records.header("compare", torch.device("cpu"), packages)
    with folder(args.keep) as output:
        sweep = create(output)
        record |= {"runs": len(POINTS) * SEEDS, "overrides": OVERRIDES, "imports": check_imports(sweep)}
        record["rows"] = [measure(sweep) for _ in range(args.repetitions)]
    record["load_average"] = os.getloadavg()  # what else ran on the machine
    record["summary"] = summary(record["rows"])
    if args.json:
        records.write(args.json, record)
    for key, name in (("seconds", "clock"), ("cpu_seconds", "CPU time")):
        values = record["summary"][key]
        print(f"{name}: {values['median']:.2f} s ({values['lower_quartile']:.2f} to {values['upper_quartile']:.2f})")


if __name__ == "__main__":
    main()
