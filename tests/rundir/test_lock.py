"""The lock of a run folder across nodes; test_worker.py has that of one node."""

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
    """A run that a process on another node holds, on a file system that does not share flock."""
    run = RunFolder(tmp_path)
    run.write_status(state="running")
    (tmp_path / ".lock").write_text(json.dumps({"pid": 12, "host": "far", "job": "7"}))
    return run


def test_remote_owner_holds_the_lock_while_its_heartbeat_is_fresh(run):
    with pytest.raises(UserError, match="already being trained by process 12 on far, job 7"), run_lock(run.path):
        pass


def test_stale_lock_is_taken_over_and_logged(run, caplog):
    long_ago = time.time() - STALE_SECONDS - 1
    os.utime(run.status, (long_ago, long_ago))
    with caplog.at_level(logging.WARNING), run_lock(run.path):
        assert f"process {os.getpid()}" in f"process {json.loads((run.path / '.lock').read_text())['pid']}"
    assert "took over the stale lock of process 12 on far, job 7" in caplog.text
    assert (run.path / ".lock").read_text() == ""


def test_previous_start_of_the_same_job_does_not_hold_the_lock(run, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with run_lock(run.path):
        pass


def test_waiting_until_the_heartbeat_is_stale(run):
    silent = time.time() - STALE_SECONDS + 1
    os.utime(run.status, (silent, silent))
    with run_lock(run.path, wait=5):
        pass


def test_missing_folder_error_names_the_folder(tmp_path):
    with (
        pytest.raises(UserError, match=r"missing/\.lock: cannot be written \(No such file"),
        run_lock(tmp_path / "missing"),
    ):
        pass


@pytest.mark.parametrize("content", [b"", b"5", b"null", b"[]", b"{}", b'{"pid": "1"}', b"\xff\xfe\x00", b"[" * 10_000])
def test_what_is_no_owner_does_not_hold_the_lock(run, content):
    (run.path / ".lock").write_bytes(content)
    with run_lock(run.path):
        pass


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_lock_that_is_no_file_is_one_line(run, make):
    (run.path / ".lock").unlink()
    make(run.path / ".lock")
    with pytest.raises(UserError, match=r"/\.lock: not a regular file; delete it$"), run_lock(run.path):
        pass
