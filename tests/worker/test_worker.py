"""Whole runs on real components in this process: files, states, exit codes, lock, accumulation."""

import json
import os
import re
import shutil
import socket

import pytest
import torch
from support.data import coco_config, coco_folder
from support.engine import results, tiny_run

from attnzoo import models
from attnzoo.config import load as configs
from attnzoo.engine.checkpoint import CheckpointManager, load_checkpoint
from attnzoo.environment import sources_hash
from attnzoo.errors import ExitCode
from attnzoo.ops import kernels
from attnzoo.rundir import attempts
from attnzoo.rundir.folder import CONFIG_HASH, RunFolder
from attnzoo.rundir.lock import run_lock
from attnzoo.worker.train import train_run


def test_files_of_a_finished_run(uninterrupted):
    status = uninterrupted.read_status()
    rows = uninterrupted.read_metrics()
    assert status["state"] == "done"
    assert (status["step"], status["steps"], status["eta"], status["error"]) == (20, 20, 0, None)
    assert (status["host"], status["pid"]) == (socket.gethostname(), os.getpid())
    assert status["AP"] == rows[-1]["val/AP"]
    assert [row["step"] for row in rows if "train/loss" in row] == [3, 6, 9, 12, 15, 18, 20]
    assert [row["step"] for row in rows if "val/AP" in row] == [8, 16, 20]
    assert rows[0].keys() == {"step", "cost/params", "cost/gflops", "cost/ms"}
    training = next(row for row in rows if "train/loss" in row)
    assert {"train/lr", "train/grad_norm", "train/loss_class", "train/loss_l1_0", "train/loss_giou"} < training.keys()
    assert {"val/AP50", "val/AP75", "val/AR_100"} < rows[-1].keys()
    environment = json.loads(uninterrupted.environment.read_text())
    assert environment["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert environment["threads"] == 1
    (recorded,) = attempts.environments(uninterrupted)
    assert recorded is not None
    assert recorded.keys() == {"sources", "torch", "operators", "device", "threads"}
    assert (recorded["sources"], recorded["operators"], recorded["threads"]) == (sources_hash(), kernels("cpu"), "1")
    assert "step 20/20" in uninterrupted.log.read_text()
    state = load_checkpoint(CheckpointManager(uninterrupted.checkpoints).latest())
    assert (state["step"], state["epoch"], state["steps_per_epoch"]) == (20, 3, 6)
    assert rows[0]["cost/params"] == sum(
        value.numel() for name, value in state["model"].items() if "running_" not in name and "num_batches" not in name
    )


def test_finished_run_started_again_returns_at_once(uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.path.rglob("*") if path.name != ".lock"}
    assert train_run(uninterrupted.path) == ExitCode.OK
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.path.rglob("*") if path.name != ".lock"} == before


def test_runs_are_deterministic_and_depend_on_the_seed(uninterrupted, tmp_path):
    for name, seed in (("same", 3), ("other", 4)):
        run = tiny_run(tmp_path / name, seed=str(seed))
        assert train_run(run.path) == ExitCode.OK
        assert (results(run) == results(uninterrupted)) == (name == "same")


@pytest.mark.parametrize("classification", ["focal", "cross_entropy"])
def test_model_with_more_classes_than_the_data_is_evaluated(tmp_path, classification):
    run = tiny_run(tmp_path / "run", model__num_classes="13", model__loss__classification=classification)
    assert train_run(run.path) == ExitCode.OK
    assert 0 <= run.read_metrics()[-1]["val/AP"] <= 1


def test_max_detections_of_an_experiment(tmp_path):
    run = tiny_run(tmp_path / "run", max_detections="7", train__steps="2")
    assert train_run(run.path) == ExitCode.OK
    metrics = run.read_metrics()[-1].keys()
    assert {"val/AR_1", "val/AR_7"} < metrics
    assert metrics.isdisjoint({"val/AR_10", "val/AR_100"})


SPLITS = ("training", "validation")


@pytest.mark.parametrize(
    ("changes", "warnings"),
    [
        ({"model__queries": "1"}, [f"{s} images have more objects than model.queries = 1" for s in SPLITS]),
        ({"max_detections": "1"}, ["validation images have more objects than max_detections = 1"]),
        ({"model__queries": "9"}, []),
    ],
    ids=["queries", "max_detections", "none"],
)
def test_images_with_more_objects_than_queries_are_reported_once(tmp_path, changes, warnings):
    run = tiny_run(tmp_path / "run", **changes, train__steps="2")
    assert train_run(run.path) == ExitCode.OK
    lines = [line for line in run.log.read_text().splitlines() if "more objects than" in line]
    assert len(lines) == len(warnings)
    assert all(text in line for text, line in zip(warnings, lines, strict=True))


@pytest.mark.slow
@pytest.mark.long
def test_compiled_detector_trains_like_the_eager_one(tmp_path):
    rows = []
    for compiled in ("false", "true"):
        smaller = {"model__decoder__layers": "1", "model__backbone__strides": "[16]", "model__dropout": "0"}
        run = tiny_run(tmp_path / compiled, train__compile=compiled, train__steps="6", **smaller)
        assert train_run(run.path) == ExitCode.OK
        rows.append([row for row in results(run) if "train/loss" in row])
    assert len(rows[0]) == 2
    for plain, ours in zip(*rows, strict=True):
        assert ours == pytest.approx(plain, rel=1e-3)


@pytest.mark.slow
def test_published_coco_recipe_trains_on_a_folder_in_its_format(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = coco_config(coco_folder(tmp_path / "coco")).dataset
    overrides = [f"data.dataset.{key}={value}" for key, value in dataset.items()]
    overrides += ["data.augment.scales=[48,64]", "data.augment.crop_scales=[48,64]", "data.augment.crop_size=[32,48]"]
    overrides += ["data.augment.eval_scale=64", "data.augment.max_size=96", "data.batch_size=2", "data.workers=1"]
    overrides += ["train.epochs=1", "device=cpu", "train.log_every=1", "per_class=true"]
    run = RunFolder(tmp_path)
    configs.save(configs.load("experiments/deformable_detr_coco.yaml", overrides), run.config)
    assert train_run(run.path) == ExitCode.OK
    rows = run.read_metrics()
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2]
    with torch.device("meta"):
        published = models.create("deformable_detr_r50", num_classes=8)
    assert rows[0]["cost/params"] == sum(p.numel() for p in published.parameters())
    assert {"val/AP", "val/AP/ant", "val/AP50/bee"} < rows[-1].keys()


def test_second_process_is_rejected_with_the_owner_named(tmp_path, capsys):
    run = tiny_run(tmp_path)
    with run_lock(run.path):
        assert train_run(run.path) == ExitCode.USER_ERROR
    message = capsys.readouterr().err
    assert f"process {os.getpid()} on {socket.gethostname()}" in message
    assert not run.status.exists()


def test_invalid_config_is_rejected(tmp_path, capsys):
    run = tiny_run(tmp_path)
    lines = run.config.read_text().replace("log_every", "log_evry").splitlines(keepends=True)
    run.config.write_text("".join(line for line in lines if not line.startswith(CONFIG_HASH)))
    assert train_run(run.path) == ExitCode.USER_ERROR
    assert "did you mean 'train.log_every'" in capsys.readouterr().err


def test_divergence_fails_the_run_and_names_step_losses_and_checkpoint(tmp_path):
    run = tiny_run(tmp_path, train__optimizer__lr="1e30", train__checkpoint_every="1")
    assert train_run(run.path) == ExitCode.FAILED
    status = run.read_status()
    assert status["state"] == "failed"
    for part in ("step 2:", "loss_class", "loss_giou_0", "grad_norm", "step-00000001."):
        assert part in status["error"]
    assert status["error"] in run.log.read_text()


def test_user_error_fails_the_run_without_a_traceback(tmp_path):
    run = tiny_run(tmp_path, data__batch_size="25")
    assert train_run(run.path) == ExitCode.FAILED
    assert "larger than the training set (24 images)" in run.read_status()["error"]
    assert "Traceback" not in run.log.read_text()


def test_unexpected_error_fails_the_run_with_a_traceback_and_the_run_can_resume(uninterrupted, tmp_path, monkeypatch):
    run = tiny_run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("attnzoo.engine.detection.postprocess", lambda *arguments: 1 / 0)
        assert train_run(run.path) == ExitCode.FAILED
    assert run.read_status()["error"] == "ZeroDivisionError: division by zero"
    assert "Traceback" in run.log.read_text()
    assert train_run(run.path) == ExitCode.OK
    assert results(run) == results(uninterrupted)
    assert run.read_status()["error"] is None


@pytest.mark.parametrize("saved", [False, True], ids=["after the checkpoint", "before it"])
def test_a_torn_row_is_mended_as_its_message_says(uninterrupted, tmp_path, saved):
    """Delete it and the rows below. Where the checkpoint was saved after them, the run says what else to do."""
    run = tiny_run(tmp_path / "run")
    shutil.copytree(uninterrupted.checkpoints, run.checkpoints)
    CheckpointManager(run.checkpoints).latest().unlink()
    CheckpointManager(run.checkpoints).best().unlink()
    run.write_status(state="interrupted", signal="SIGINT")
    lines = uninterrupted.metrics.read_text().splitlines(keepends=True)
    lines[1 if saved else -1] = lines[1][:10] + "\n"
    run.metrics.write_text("".join(lines))
    assert "it is enough to delete this row and those below" in run.corruption()
    number = int(re.search(r"metrics\.jsonl:(\d+): corrupt row", run.corruption())[1])
    run.metrics.write_text("".join(lines[: number - 1]))
    assert run.corruption() is None
    if saved:
        assert train_run(run.path) == ExitCode.FAILED
        assert "restore the file, or delete the run folder" in run.read_status()["error"]
    else:
        assert train_run(run.path) == ExitCode.OK
        assert results(run) == results(uninterrupted)


STILL = {"model__dropout": "0", "model__backbone__norm": "frozen", "train__ema": "null", "train__log_every": "1"}


def test_accumulated_batches_weigh_objects_like_one_large_batch(tmp_path):
    large = tiny_run(tmp_path / "large", **STILL, data__batch_size="8", train__steps="3")
    small = tiny_run(tmp_path / "small", **STILL, data__batch_size="4", train__steps="3", train__accumulate="2")
    assert train_run(large.path) == train_run(small.path) == ExitCode.OK
    for ours, theirs in zip(results(small), results(large), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def test_bf16_channels_last_and_loader_workers_train(tmp_path):
    options = {"train__precision": "bf16", "train__channels_last": "true", "data__workers": "1", "train__steps": "4"}
    run = tiny_run(tmp_path, **options)
    assert train_run(run.path) == ExitCode.OK
    assert run.read_metrics()[-1]["val/AP"] >= 0
