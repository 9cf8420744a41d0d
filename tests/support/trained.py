"""A detector and a classifier that are trained in a few seconds, for tests of models in use."""

from pathlib import Path

from attnzoo.errors import ExitCode
from attnzoo.rundir.folder import RunFolder
from attnzoo.worker.train import train_run
from support.classification import tiny_classifier
from support.engine import TINY_SCENES, tiny_run

STEPS = 40
DETECTOR = {
    "data__dataset__val_images": "20",
    "data__val_batch_size": "3",
    "model__queries": "20",
    "train__steps": str(STEPS),
    "train__eval_every": "20",
    "train__ema": "0.9",
    "train__log_every": "20",
    "train__pictures": "false",
}


def train_detector(path: Path) -> RunFolder:
    """A detector with an AP above zero, the better of its two evaluations the second."""
    run = tiny_run(path, TINY_SCENES, **DETECTOR)
    assert train_run(run.path) == ExitCode.OK
    return run


def train_classifier(path: Path) -> RunFolder:
    run = tiny_classifier(path)
    assert train_run(run.path) == ExitCode.OK
    return run
