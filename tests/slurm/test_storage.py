"""Full or read-only disks: the run fails with the reason, no file is damaged, and it resumes once it can write."""

import os
import subprocess
from pathlib import Path

import pytest
from support.engine import results
from support.slurm import INTERVAL_STEPS, Sweep, report, wait

from attnzoo.sweep import snapshot

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED HERE: mounting needs root"),
]


def mount(*arguments: str | Path) -> None:
    """Mount, or skip if even root may not."""
    done = subprocess.run(["mount", *arguments], text=True, capture_output=True)
    if done.returncode:
        pytest.skip(f"NOT TESTED HERE: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path):
    """A file system with 12 MB and the size of the code snapshot."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = 12_000_000 + sum(path.stat().st_size for path in snapshot.PACKAGE.rglob("*") if path.is_file())
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> Path:
    """Fill a file system."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(b"0" * 4096)
            except OSError:
                return filler


def test_run_that_failed_on_a_full_disk_resumes_once_there_is_space(cluster, small_disk, undisturbed, monkeypatch):
    sweep = Sweep(small_disk)
    monkeypatch.chdir(small_disk)
    sweep.submit()
    assert sweep.wait_for_step(20) < 60
    filler = fill(small_disk)
    state = sweep.wait_for_end()["seed=3"]
    assert state.state == "failed"
    assert "No space left on device" in state.note
    assert cluster.job(sweep.job())["JobState"] == "FAILED"
    assert cluster.restarts(sweep.job()) == 0
    filler.unlink()
    sweep.submit("--only", "failed")
    state = sweep.wait_for_end()["seed=3"]
    assert state.state == "done", sweep.describe("seed=3")
    assert results(sweep.run()) == undisturbed
    report("disk full", 1, state.steps_lost, INTERVAL_STEPS)


def test_read_only_folder_is_reported_and_not_retried(cluster, sweep, undisturbed):
    sweep.submit("slurm.options={hold: true}")
    run = sweep.run().path
    mount("--bind", run, run)
    try:
        mount("-o", "remount,ro,bind", run)
        cluster.ask("scontrol", "release", sweep.job())
        state = sweep.wait_for_end()["seed=3"]
        assert state.state == "failed"
        assert "cannot be written (Read-only file system)" in state.note
        wait(lambda: cluster.job(sweep.job())["JobState"] == "FAILED", 60, "for the job's end")
        assert cluster.restarts(sweep.job()) == 0
    finally:
        subprocess.run(["umount", run], check=True)
    sweep.submit("--only", "failed")
    state = sweep.wait_for_end()["seed=3"]
    assert state.state == "done"
    assert results(sweep.run()) == undisturbed
    report("folder read-only", 1, state.steps_lost, allowed=0)
