"""What pictures, histograms and attention metrics cost while a model trains: their share of a run's time.

python tools/benchmark_pictures.py [--experiment FILE] [--set KEY=VALUE ...] [--json FILE]

Trains the first run of the experiment, by default the demo's detector, in this process, and sums the time inside
`TrainingPictures`; by the clock and of the processor.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from attnzoo import environment, ops
from attnzoo.config.load import Experiment, save
from attnzoo.environment import cpu_name
from attnzoo.inference.training import TrainingPictures
from attnzoo.sweep.expand import expand
from attnzoo.worker import train

ROOT = Path(__file__).resolve().parents[1]


class TimedPictures(TrainingPictures):
    """Adds the time of each call to `spent`."""

    spent: tuple[float, ...] = (0.0, 0.0)  # seconds by the clock, of the processor
    calls = 0

    def __call__(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        start = _now()
        try:
            return super().__call__(*args, **kwargs)
        finally:
            now = _now()
            TimedPictures.spent = tuple(
                spent + after - before for spent, before, after in zip(TimedPictures.spent, start, now, strict=True)
            )
            TimedPictures.calls += 1


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def measure(experiment: Path, overrides: list[str]) -> dict[str, object]:
    """Train the first run of the experiment; the record."""
    train.TrainingPictures = TimedPictures  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as output:
        run = expand(Experiment(experiment, [*overrides, f"output={output}"]))[0]
        run.folder.path.mkdir(parents=True)
        save(run.config, run.folder.config)
        train.train_run(run.folder.path)  # fills the cache of images, which a second run does not pay for
        TimedPictures.spent, TimedPictures.calls = (0.0, 0.0), 0
        second = run.folder.path.with_name("second")
        second.mkdir()
        save(run.config, second / run.folder.config.name)
        start = _now()
        train.train_run(second)
        clock, cpu = (after - before for before, after in zip(start, _now(), strict=True))
    return {
        "kind": "pictures",
        "run": run.name,
        "steps": run.config.train.steps,
        "evaluations": TimedPictures.calls,
        "seconds": {"run": clock, "pictures": TimedPictures.spent[0]},
        "cpu_seconds": {"run": cpu, "pictures": TimedPictures.spent[1]},
        "share": {"clock": TimedPictures.spent[0] / clock, "cpu": TimedPictures.spent[1] / cpu},
        "machine": cpu_name(),
        "operators": ops.kernels("cpu"),
        "sources": environment.sources_hash(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=ROOT / "experiments" / "ablate_points.yaml")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[])
    parser.add_argument("--json", type=Path, help="keep the record in this file")
    args = parser.parse_args()
    record = measure(args.experiment, args.set)
    text = json.dumps(record, indent=1)
    print(text)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
