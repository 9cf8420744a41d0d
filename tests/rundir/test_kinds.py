"""What else can lie in a run's folder where the run writes."""

import os
from pathlib import Path

import pytest
from support.engine import tiny_run

from attnzoo.errors import ExitCode
from attnzoo.sweep.workers import open_crash_log
from attnzoo.worker.train import train_run


@pytest.mark.parametrize("name", ["log.txt", "environment.json", "attempts.jsonl", ".reserve", "metrics.jsonl"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink(path.name, path)])
def test_run_does_not_wait_for_what_is_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, make
) -> None:
    run = tiny_run(tmp_path / "run")
    make(run.path / name)
    assert train_run(run.path) == ExitCode.USER_ERROR
    assert f"{run.path / name}: not a regular file; delete it" in capsys.readouterr().err


def test_file_in_place_of_the_folder_of_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny_run(tmp_path / "run")
    run.checkpoints.write_text("")
    assert train_run(run.path) == ExitCode.USER_ERROR
    assert f"{run.checkpoints}: not a folder; delete it" in capsys.readouterr().err


def test_launcher_does_not_wait_for_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny_run(tmp_path / "run")
    os.mkfifo(run.log)
    with open_crash_log(run) as file:
        assert file is None
    assert "log.txt: cannot be written (not a regular file)" in capsys.readouterr().err
