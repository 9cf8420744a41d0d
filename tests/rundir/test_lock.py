"""The lock of a run folder across nodes; processes of one node meet it in test_worker.py."""

import json
import logging
import os
import time

import pytest

from attnzoo.errors import UserError
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.lock import STALE_SECONDS, run_lock


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run that a process on another node has, by a lock that does not reach us."""
    run = RunFolder(tmp_path)
    run.write_status(state="running")
    (tmp_path / ".lock").write_text(json.dumps({"pid": 12, "host": "far", "job": "7"}))
    return run


def test_an_owner_elsewhere_counts_while_its_run_gives_signs_of_life(run):
    with pytest.raises(UserError, match="already being trained by process 12 on far, job 7"), run_lock(run.path):
        pass


def test_the_lock_of_an_owner_that_fell_silent_is_recovered_and_said(run, caplog):
    long_ago = time.time() - STALE_SECONDS - 1
    os.utime(run.status, (long_ago, long_ago))
    with caplog.at_level(logging.WARNING), run_lock(run.path):
        assert f"process {os.getpid()}" in f"process {json.loads((run.path / '.lock').read_text())['pid']}"
    assert "took over the stale lock of process 12 on far, job 7" in caplog.text
    assert (run.path / ".lock").read_text() == ""


def test_an_earlier_start_of_the_same_job_does_not_count(run, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with run_lock(run.path):
        pass


def test_waiting_outlasts_an_owner_that_leaves(run):
    silent = time.time() - STALE_SECONDS + 1
    os.utime(run.status, (silent, silent))
    with run_lock(run.path, wait=5):
        pass


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UserError, match=r"missing: cannot be written \(No such file"), run_lock(tmp_path / "missing"):
        pass
