"""A sweep whose runs are prepared as by its launcher, and what a finished run has written, without training it."""

import json
from collections.abc import Iterable
from pathlib import Path

from attnzoo.config.load import Experiment
from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep.check_runs import check_runs
from attnzoo.sweep.expand import RunSpec, expand
from attnzoo.sweep.folder import SweepFolder

SCENES = "{name: digit_scenes, image_size: 32, sizes: [6, 14], train_images: 24, val_images: 6}"
EXPERIMENT = f"""
base: base/detr_scenes.yaml
name: x
data: {{dataset: {SCENES}, batch_size: 4}}
model: {{dim: 16, heads: 2, ffn: 16, queries: 5}}
train: {{steps: 2, log_every: 1, eval_every: null, pictures: false}}
"""


def create_sweep(seeds: Iterable[int], dataset: str = SCENES) -> list[RunSpec]:
    """Write x.yaml, an experiment that trains in a second, and the sweep runs/x of it; returns the runs, untrained."""
    Path("x.yaml").write_text(f"{EXPERIMENT.replace(SCENES, dataset)}sweep: {{seeds: {list(seeds)}}}\n")
    experiment = Experiment("x.yaml")
    sweep = SweepFolder(Path("runs/x"))
    runs = sweep.assign(check_runs(experiment, expand(experiment)))
    sweep.create(runs, "x.yaml")
    return runs


def finish(run: RunFolder, steps: int = 2, metric: str = "val/AP", value: float = 0.5) -> None:
    """Write the metrics and the status of a run of detection that is done, or of another task by its `metric`."""
    rows = [{"step": 1, "train/loss": 1.0}, {"step": steps, "train/loss": 0.5}, {"step": steps, metric: value}]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.write_status(state="done", step=steps, steps=steps, **{metric.removeprefix("val/"): value})


def create_untrained(dataset: str = SCENES, num_classes: int = 10) -> Path:
    """A run of a tiny detector, of `create_sweep`, with a checkpoint of random weights; its folder."""
    import torch

    from attnzoo import models
    from attnzoo.config.load import load_saved

    (spec,) = create_sweep([0], dataset)
    run = Path("runs/x") / spec.name
    torch.manual_seed(0)
    model = models.build(load_saved(run / "config.yaml").model, num_classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    (run / "checkpoints").mkdir(exist_ok=True)
    torch.save({"model": model.state_dict(), "ema": None}, run / "checkpoints" / "best-00000002.pt")
    return run
