"""Why a run ended, from the exit code and from what the worker recorded."""

import signal
import time

import pytest

from attnzoo.errors import ExitCode
from attnzoo.rundir import attempts
from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep import outcome
from attnzoo.sweep.outcome import ExitKind, Outcome


@pytest.fixture
def run(tmp_path) -> RunFolder:
    run = RunFolder(tmp_path)
    run.write_status(state="running", step=3, error=None)
    run.log.write_text("one\nlast words\n\n")
    return run


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (-signal.SIGKILL, Outcome(ExitKind.MACHINE_FAILURE, "killed by SIGKILL")),
        (128 + signal.SIGKILL, Outcome(ExitKind.MACHINE_FAILURE, "killed by SIGKILL")),
        (ExitCode.PEER_LOST, Outcome(ExitKind.MACHINE_FAILURE, "lost a process of the run")),
        (-signal.SIGSEGV, Outcome(ExitKind.FAILED, "exit code -11: last words")),
        (134, Outcome(ExitKind.FAILED, "exit code 134: last words")),
        (1, Outcome(ExitKind.FAILED, "exit code 1: last words")),
        (ExitCode.USER_ERROR, Outcome(ExitKind.NOT_STARTED, "last words")),
        (-signal.SIGTERM, Outcome(ExitKind.INTERRUPTED, "SIGTERM")),
        (128 + signal.SIGUSR1, Outcome(ExitKind.INTERRUPTED, "SIGUSR1")),
        (-signal.SIGHUP, Outcome(ExitKind.INTERRUPTED, "SIGHUP")),
        (128 + signal.SIGUSR2, Outcome(ExitKind.INTERRUPTED, "SIGUSR2")),
    ],
)
def test_without_a_record_the_exit_code_decides(run, code, expected):
    assert outcome.classify(run, code, time.time() - 5) == expected


def test_status_recorded_by_the_worker_takes_precedence(run):
    start_time = time.time() - 5
    run.write_status(state="failed", error="it was me")
    assert outcome.classify(run, -signal.SIGKILL, start_time) == Outcome(ExitKind.FAILED, "it was me")
    run.write_status(state="interrupted", signal="SIGUSR2")
    assert outcome.classify(run, 1, start_time) == Outcome(ExitKind.INTERRUPTED, "SIGUSR2")
    run.write_status(state="done")
    assert outcome.classify(run, -signal.SIGKILL, start_time) == Outcome(ExitKind.DONE)


def test_record_of_an_earlier_start_does_not_count(run):
    run.write_status(state="failed", error="long ago")
    assert outcome.classify(run, -signal.SIGKILL, time.time() + 5).kind is ExitKind.MACHINE_FAILURE


def test_too_many_machine_failures_fail_the_run(run):
    for _ in range(3):
        outcome.record(run, Outcome(ExitKind.MACHINE_FAILURE, "killed by SIGKILL"))
    assert outcome.fail_if_exhausted(run, retries=3) is None
    assert run.read_status()["state"] == "running"
    reason = outcome.fail_if_exhausted(run, retries=2)
    assert reason is not None
    assert run.read_status() | {"heartbeat": 0} == {"state": "failed", "step": 3, "error": reason, "heartbeat": 0}
    assert attempts.retries_exhausted(run, retries=0) is None  # the next submission counts from zero


def test_crashes_are_recorded_for_the_worker(run):
    outcome.record(run, Outcome(ExitKind.FAILED, "exit code 139: last words"))
    assert run.read_status()["error"] == "exit code 139: last words"
    assert attempts.read(run)[-1].outcome == "failed"


def test_nothing_is_recorded_of_a_run_whose_status_cannot_be_read(run):
    run.status.write_bytes(b"")
    result = outcome.classify(run, ExitCode.USER_ERROR, time.time() - 5)
    assert result.kind is ExitKind.CORRUPT
    assert "status.json: corrupt; delete it" in result.reason
    outcome.record(run, result)
    assert run.status.read_bytes() == b""
    assert not run.attempts.exists()
