"""Every attention trains and resumes in every slot that its roles allow."""

from pathlib import Path

import pytest
import torch
from support.engine import results, tiny_run

from attnzoo import attention
from attnzoo.engine.checkpoint import CheckpointManager, load_checkpoint
from attnzoo.errors import ExitCode
from attnzoo.geometry import Role
from attnzoo.rundir.folder import RunFolder
from attnzoo.worker.train import train_run

SLOTS = [(role, name) for role in Role for name in attention.names() if role in attention.ATTENTIONS.get(name).roles]
VIT = {
    "model__backbone__name": "swin_pico",
    "model__backbone__strides": "[8, 16]",
    "train__steps": "2",
    "train__log_every": "1",
    "train__eval_every": "2",
    "train__checkpoint_every": "1",
}


def run_with(folder: Path, role: Role, name: str) -> RunFolder:
    if role == Role.STAGE:
        return tiny_run(folder, **VIT, model__backbone__options__stage3__second__name=name)
    block = f"{{name: {name}, level: 0}}" if name == "deform" else f"{{name: {name}}}"
    return tiny_run(folder, **VIT, **{f"model__{role}__attention": block})


@pytest.mark.slow
@pytest.mark.parametrize(("role", "name"), SLOTS, ids=lambda value: str(value))
def test_training_step_and_resume(role: Role, name: str, tmp_path: Path) -> None:
    uninterrupted, halved = run_with(tmp_path / "whole", role, name), run_with(tmp_path / "halved", role, name)
    assert train_run(uninterrupted.path) == ExitCode.OK
    (first,) = uninterrupted.checkpoints.glob("step-00000001*")
    halved.checkpoints.mkdir(parents=True, exist_ok=True)
    (halved.checkpoints / first.name).write_bytes(first.read_bytes())
    halved.metrics.write_bytes(uninterrupted.metrics.read_bytes())
    assert train_run(halved.path) == ExitCode.OK
    assert results(halved) == results(uninterrupted)
    ours, theirs = (
        load_checkpoint(CheckpointManager(run.checkpoints).latest())["model"] for run in (halved, uninterrupted)
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
