"""Sweeps of several processes, started by the launcher and by torchrun."""

import json
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from support.sweep import TINY, results, sweep


@pytest.mark.slow
@pytest.mark.long
def test_several_processes_with_launcher_and_torchrun(tiny: Path) -> None:
    ended = sweep("processes=2", "jobs=1", "output=launched")
    assert ended.returncode == 0, ended.stderr
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = [*torchrun, "attnzoo.run", "tiny.yaml", "processes=2"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "points" in done.stdout
    for name in ("points=1-seed=0", "points=2-seed=0"):
        assert results(tiny.parent / "runs/tiny" / name) == results(tiny.parent / "launched/tiny" / name)
    assert len((tiny.parent / "runs/tiny/comparison.csv").read_text().splitlines()) == 3
    again = subprocess.run(command, text=True, capture_output=True, timeout=300)
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
@pytest.mark.long
def test_torchrun_accepts_only_and_dry_run(tiny: Path) -> None:
    def torchrun(*arguments: str) -> str:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
        command += ["attnzoo.run", "tiny.yaml", "sweep.zip={}", *arguments]
        done = subprocess.run(command, text=True, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    folder = tiny.parent / "runs" / "tiny"
    assert torchrun("--dry-run").count("seed=0") == 2  # in one table: the run and its folder
    assert not folder.parent.exists()
    torchrun("--only", "failed")
    assert not (folder / "seed=0" / "status.json").exists()
    torchrun("--only", "missing")
    assert json.loads((folder / "seed=0" / "status.json").read_text())["state"] == "done"
    status = folder / "seed=0" / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"state": "failed", "error": "x"}))
    torchrun("--only", "missing")
    assert json.loads(status.read_text())["state"] == "failed"
    torchrun("--only", "failed")
    assert json.loads(status.read_text())["state"] == "done"


@pytest.mark.slow
@pytest.mark.long
def test_torchrun_on_a_terminal_shows_a_progress_bar(tiny: Path) -> None:
    tiny.write_text(TINY.replace("steps: 3", "steps: 60").replace("[1, 2]", "[1]"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m"]
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "200"}
    with subprocess.Popen([*torchrun, "attnzoo.run", "tiny.yaml"], stdout=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # at the end of the process
            while part := os.read(ours, 65536):
                shown += part
    os.close(ours)
    assert process.returncode == 0
    assert "━".encode() in shown
    assert re.search(rb"\d+/60 .*loss", shown)
    assert b"train/loss" in shown  # log lines are printed above it


@pytest.mark.slow
def test_user_error_under_torchrun_is_reported_and_writes_nothing(tiny: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command = [*torchrun, "attnzoo.run", "tiny.yaml", "train.stpes=3"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300)
    assert done.returncode != 0
    assert "did you mean 'train.steps'?" in done.stderr
    assert not (tiny.parent / "runs").exists()
