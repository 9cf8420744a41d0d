"""A power cut at any moment of a run: it loses steps, which are repeated, and never a row of metrics."""

from contextlib import suppress
from pathlib import Path

import pytest
from support.engine import Regression, results, tiny_run
from support.engine_power import Disk, PowerCut

from attnzoo.errors import ExitCode
from attnzoo.rundir.folder import RunFolder
from attnzoo.worker.train import train_run

OPTIONS = {"train__steps": "12", "train__log_every": "2", "train__eval_every": "5", "train__checkpoint_every": "3"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that take milliseconds."""
    monkeypatch.setattr("attnzoo.worker.train.build_task", lambda config, ctx: Regression())
    monkeypatch.setattr("attnzoo.environment.collect_environment", lambda device, processes: {})


def train_on(disk: Disk) -> None:
    with disk, suppress(PowerCut):
        assert train_run(disk.folder) == ExitCode.OK
    disk.restore()


def assert_tells_the_truth(run: RunFolder, uninterrupted: RunFolder) -> None:
    """A run in state done has all of its rows."""
    assert run.read_status()["state"] != "done" or results(run) == results(uninterrupted)


@pytest.mark.parametrize("lose_names", [False, True])
@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_power_cut_at_any_moment_loses_no_row(tmp_path: Path, lose_names: bool, stride: int) -> None:
    uninterrupted = tiny_run(tmp_path / "whole", **OPTIONS)
    disk = Disk(uninterrupted.path, lose_names)
    train_on(disk)
    assert uninterrupted.read_status()["state"] == "done"
    assert [row["step"] for row in results(uninterrupted) if "val/AP" in row] == [5, 10, 12]
    assert disk.moments > 60
    for moment in range(1, disk.moments + 1, stride):
        run = tiny_run(tmp_path / f"run-{moment}", **OPTIONS)
        train_on(Disk(run.path, lose_names, cut_at=moment))
        assert_tells_the_truth(run, uninterrupted)
        train_on(Disk(run.path, lose_names, cut_at=moment // 2 + 1))  # again, while it resumes
        assert_tells_the_truth(run, uninterrupted)
        assert train_run(run.path) == ExitCode.OK
        assert results(run) == results(uninterrupted)
        assert run.read_status()["state"] == "done"


def test_checkpoint_whose_rows_are_lost_is_rejected(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, **OPTIONS)
    assert train_run(run.path) == ExitCode.OK
    run.write_status(state="interrupted", signal="SIGTERM")
    lines = run.metrics.read_text().splitlines(keepends=True)
    run.metrics.write_text("".join(lines[:4]))
    assert train_run(run.path) == ExitCode.FAILED
    assert "has 4 rows, but the checkpoint was saved after 9" in run.read_status()["error"]
    assert run.metrics.read_text() == "".join(lines[:4])


def test_run_without_validation_metrics_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run(tmp_path, **OPTIONS)
    monkeypatch.setattr(Regression, "evaluate", lambda self, forward, heartbeat: {"AP": float("nan")})
    assert train_run(run.path) == ExitCode.FAILED
    assert "no validation metrics at step 12" in run.read_status()["error"]
