"""The record of a run's starts and ends."""

import pytest

from attnzoo.rundir import attempts
from attnzoo.rundir.folder import RunFolder


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(tmp_path)


def checkpoint(run: RunFolder, step: int) -> None:
    run.checkpoints.mkdir(exist_ok=True)
    (run.checkpoints / f"step-{step:08d}.0123456789abcdef.pt").touch()


def test_start_and_its_end_are_one_attempt(run):
    attempts.record_start(run, 5, steps_lost=2)
    (running,) = attempts.read(run)
    assert (running.step, running.steps_lost, running.outcome) == (5, 2, None)
    attempts.record_end(run, "interrupted", "SIGUSR2")
    attempts.record_start(run, 7, steps_lost=0)
    first, second = attempts.read(run)
    assert (first.outcome, first.reason, first.step) == ("interrupted", "SIGUSR2", 5)
    assert second.outcome is None


def test_end_without_a_start_counts_as_an_attempt(run):
    attempts.record_end(run, attempts.MACHINE, "killed by SIGKILL")
    (only,) = attempts.read(run)
    assert only.is_machine_failure
    assert only.reason == "killed by SIGKILL"


def test_line_truncated_by_a_crash_is_skipped(run):
    attempts.record_start(run, 0, steps_lost=0)
    with run.attempts.open("a") as file:
        file.write('{"event": "end", "outc')
    attempts.record_start(run, 0, steps_lost=0)
    attempts.record_end(run, "done")
    assert [attempt.outcome for attempt in attempts.read(run)] == [None, "done"]


@pytest.mark.parametrize(
    "line",
    [
        b"7",
        b"[]",
        b"{}",
        b'{"event": "pause"}',
        b'{"event": ["start"]}',
        b'{"event": "start", "step": "5", "steps_lost": 0, "host": "a", "job": null}',
        b'{"event": "end", "outcome": "done"}',
        b"\xff\xfe",
    ],
)
def test_malformed_line_is_skipped(run, line):
    attempts.record_start(run, 5, steps_lost=2)
    with run.attempts.open("ab") as file:
        file.write(line + b"\n")
    attempts.record_end(run, "done")
    (only,) = attempts.read(run)
    assert (only.step, only.steps_lost, only.outcome) == (5, 2, "done")


def test_consecutive_failures_without_progress_exhaust_the_retries(run):
    for _ in range(2):
        attempts.record_start(run, 0, steps_lost=0)  # a lost node records no end
    assert attempts.retries_exhausted(run, retries=2) is None
    assert "2 machine failures in a row at step 0 (retries = 1" in (attempts.retries_exhausted(run, retries=1) or "")
    checkpoint(run, 10)
    assert attempts.retries_exhausted(run, retries=0) is None  # it has made progress


def test_other_outcomes_reset_the_count_of_failures(run):
    for outcome in ("failed", "interrupted"):
        attempts.record_start(run, 0, steps_lost=0)
        attempts.record_start(run, 0, steps_lost=0)
        attempts.record_end(run, outcome)
        assert attempts.retries_exhausted(run, retries=0) is None


def test_job_of_an_array_is_named_with_its_task(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "14")
    assert attempts.job_id() == "14"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert attempts.job_id() == "12_2"


def test_the_environments_of_a_result_are_those_of_the_steps_in_it(run):
    def start(step: int, sources: str | None) -> None:
        attempts.record_start(run, step, 0, {"sources": sources} if sources else None)
        attempts.record_end(run, "interrupted", "SIGINT")

    start(0, "lost")  # before its first checkpoint
    start(0, "a")
    checkpoint(run, 4)
    attempts.record_end(run, attempts.MACHINE, "killed by SIGKILL")  # before training
    start(4, "also lost")
    start(4, "b")
    start(8, None)
    assert attempts.environments(run) == [{"sources": "a"}, {"sources": "b"}, None]
    run.attempts.write_text("".join(run.attempts.read_text().splitlines(keepends=True)[-2:]))
    assert attempts.environments(run) == [None, None]  # the first attempts are not known


def test_without_attempts_the_environment_is_not_known(run):
    assert attempts.environments(run) == [None]
