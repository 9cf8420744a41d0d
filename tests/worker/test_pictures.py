"""Pictures of a training: they do not change it, and their errors do not end it."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.classification import tiny_classifier
from support.engine import results, tiny_run

from attnzoo.engine.checkpoint import CheckpointManager, load_checkpoint
from attnzoo.errors import ExitCode
from attnzoo.inference.training import TrainingPictures, last_of_each_slot
from attnzoo.rundir.folder import RunFolder
from attnzoo.worker.train import train_run


def without_entropy(run: RunFolder) -> list[dict]:
    return [row for row in results(run) if not any(key.startswith("entropy/") for key in row)]


def test_pictures_do_not_change_the_training(uninterrupted, tmp_path):
    run = tiny_run(tmp_path / "run", train__pictures="true")
    torch.manual_seed(5)
    assert train_run(run.path) == ExitCode.OK
    assert without_entropy(run) == results(uninterrupted)
    ours, theirs = (load_checkpoint(CheckpointManager(r.checkpoints).latest()) for r in (run, uninterrupted))
    for name, value in ours["model"].items():
        assert torch.equal(value, theirs["model"][name]), name
    entropies = [row for row in run.read_metrics() if "entropy/decoder.1" in row]
    assert [row["step"] for row in entropies] == [8, 16, 20]
    assert all(0 <= value <= 1 + 1e-6 for row in entropies for key, value in row.items() if key != "step")
    keys = entropies[0].keys() - {key for key in entropies[0] if key.startswith("level_share/")}
    inside = {"inside_box/decoder.0", "inside_box/decoder.1"}
    assert keys == {"step", "entropy/encoder.0", "entropy/decoder.0", "entropy/decoder.1"} | inside
    sizes = {key.rpartition("/")[0] for key in entropies[0] if key.startswith("level_share/decoder.1/")}
    assert sizes
    for size in sizes:
        assert sum(value for key, value in entropies[0].items() if key.startswith(f"{size}/")) == pytest.approx(1)
    names = {"predictions", "sampling_points", "encoder_sampling_points", "offsets"}
    assert {path.name for path in run.pictures.iterdir()} == {f"{name}.png" for name in names}
    for path in run.pictures.iterdir():
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 10, path  # not empty


def test_error_in_drawing_is_one_warning(uninterrupted, tmp_path):
    run = tiny_run(tmp_path / "run", train__pictures="true")
    run.pictures.write_text("where the folder should be")
    assert train_run(run.path) == ExitCode.OK
    assert without_entropy(run) == results(uninterrupted)
    assert run.log.read_text().count("no pictures of this training from here on: FileExistsError") == 1


@pytest.mark.slow
def test_pictures_of_a_classifier(tmp_path):
    run = tiny_classifier(tmp_path / "run", train__pictures="true")
    assert train_run(run.path) == ExitCode.OK
    assert {path.name for path in run.pictures.iterdir()} == {"predictions.png", "deformed_grid.png"}
    names = {key for row in run.read_metrics() for key in row if key.startswith("entropy/")}
    assert names == {"entropy/stage1.0", "entropy/stage1.1", "entropy/stage2.0"}


@pytest.mark.parametrize(("eval_every", "drawn"), [(None, [20]), (2, [8, 16, 20])])
def test_pictures_are_drawn_at_evaluations_that_double(eval_every, drawn, tmp_path):
    pictures = TrainingPictures([], 3, None, tmp_path, torch.device("cpu"), eval_every)
    steps = range(2, 21, 2) if eval_every else [20]
    assert [step for step in steps if step == 20 or pictures._is_due(step)] == drawn


def test_last_layer_of_each_slot():
    names = ["encoder.0", "encoder.1", "decoder.0", "stage1.0", "stage1.1", "stage3.0"]
    assert last_of_each_slot(names) == {"encoder.1", "decoder.0", "stage1.1", "stage3.0"}
