"""Whose fault an end was, from the exit code and from what the run wrote itself."""

import signal
import time

import pytest

from attnzoo.errors import ExitCode
from attnzoo.rundir import attempts
from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep import outcome
from attnzoo.sweep.outcome import Kind, Outcome


@pytest.fixture
def run(tmp_path) -> RunFolder:
    run = RunFolder(tmp_path)
    run.write_status(state="running", step=3, error=None)
    run.log.write_text("one\nlast words\n\n")
    return run


def test_the_exit_codes_are_the_workers():
    assert (outcome.DONE, outcome.REFUSED, outcome.LOST) == (ExitCode.OK, ExitCode.USER_ERROR, ExitCode.PEER_LOST)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (-signal.SIGKILL, Outcome(Kind.MACHINE, "killed by SIGKILL")),
        (128 + signal.SIGKILL, Outcome(Kind.MACHINE, "killed by SIGKILL")),
        (ExitCode.PEER_LOST, Outcome(Kind.MACHINE, "a process of the run was lost")),
        (-signal.SIGSEGV, Outcome(Kind.FAILED, "exit code -11: last words")),
        (134, Outcome(Kind.FAILED, "exit code 134: last words")),
        (1, Outcome(Kind.FAILED, "exit code 1: last words")),
        (ExitCode.USER_ERROR, Outcome(Kind.REFUSED, "last words")),
        (-signal.SIGTERM, Outcome(Kind.INTERRUPTED, "SIGTERM")),
        (128 + signal.SIGUSR2, Outcome(Kind.INTERRUPTED, "SIGUSR2")),
    ],
)
def test_an_end_without_a_word_is_judged_by_its_code(run, code, expected):
    assert outcome.judge(run, code, time.time() - 5) == expected


def test_what_the_run_wrote_itself_counts_more(run):
    began = time.time() - 5
    run.write_status(state="failed", error="it was me")
    assert outcome.judge(run, -signal.SIGKILL, began) == Outcome(Kind.FAILED, "it was me")
    run.write_status(state="interrupted", signal="SIGUSR2")
    assert outcome.judge(run, 1, began) == Outcome(Kind.INTERRUPTED, "SIGUSR2")
    run.write_status(state="done")
    assert outcome.judge(run, -signal.SIGKILL, began) == Outcome(Kind.DONE)


def test_what_an_earlier_start_wrote_does_not(run):
    run.write_status(state="failed", error="long ago")
    assert outcome.judge(run, -signal.SIGKILL, time.time() + 5).kind is Kind.MACHINE


def test_a_machine_that_fails_too_often_fails_the_run(run):
    for _ in range(3):
        outcome.record(run, Outcome(Kind.MACHINE, "killed by SIGKILL"))
    assert outcome.give_up(run, retries=3) is None
    assert run.read_status()["state"] == "running"
    reason = outcome.give_up(run, retries=2)
    assert reason is not None
    assert run.read_status() | {"heartbeat": 0} == {"state": "failed", "step": 3, "error": reason, "heartbeat": 0}
    assert attempts.retries_exhausted(run, retries=0) is None  # the next submission counts anew


def test_crashes_are_recorded_for_runs_that_could_not(run):
    outcome.record(run, Outcome(Kind.FAILED, "exit code 139: last words"))
    assert run.read_status()["error"] == "exit code 139: last words"
    assert attempts.read(run)[-1].outcome == "failed"
