"""Real processes, killed and interrupted: a resumed run gives exactly the results of an uninterrupted one."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from support import engine_kill
from support.engine import results, tiny_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from attnzoo.engine.checkpoint import CheckpointManager, load_checkpoint
from attnzoo.errors import ExitCode
from attnzoo.rundir.folder import RunFolder
from attnzoo.worker.train import train_run

# Each process is forked from one that has imported torch and the engine and done nothing yet.
FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["attnzoo.worker.train"])


def begin(run: RunFolder, moment: str, count: int) -> multiprocessing.Process:
    """A worker that is killed or interrupted at an exact moment."""
    process = FRESH.Process(target=engine_kill.main, args=(str(run.path), moment, count))
    process.start()
    return process


def ended(process: multiprocessing.Process, seconds: float = 120) -> int | None:
    """The exit code, or the negative signal."""
    process.join(seconds)
    return process.exitcode


def kill_at(run: RunFolder, moment: str, count: int) -> None:
    assert ended(begin(run, moment, count)) == -signal.SIGKILL
    assert run.read_status()["state"] == "running"


def assert_same(run: RunFolder, uninterrupted: RunFolder) -> None:
    """Metrics, events, weights and the best checkpoint equal those of the uninterrupted run."""
    assert results(run) == results(uninterrupted)
    ours, theirs = (load_checkpoint(CheckpointManager(r.checkpoints).latest()) for r in (run, uninterrupted))
    for part in ("model", "ema"):
        assert all(torch.equal(value, theirs[part][name]) for name, value in ours[part].items())
    assert ours["best"] == theirs["best"]
    assert (
        CheckpointManager(run.checkpoints).best().name[:13]
        == CheckpointManager(uninterrupted.checkpoints).best().name[:13]
    )
    events = EventAccumulator(str(run.path), size_guidance={"scalars": 0}).Reload()
    for tag in ("train/loss", "val/AP"):
        assert [event.step for event in events.Scalars(tag)] == [row["step"] for row in results(run) if tag in row]


@pytest.mark.parametrize(
    ("moment", "count"),
    [
        ("writing", 3),
        ("evaluation", 4),
        pytest.param("step", 1, marks=pytest.mark.slow),
        pytest.param("step", 13, marks=pytest.mark.slow),
        pytest.param("step", 20, marks=pytest.mark.slow),
        pytest.param("writing", 1, marks=pytest.mark.slow),
        pytest.param("renaming", 2, marks=pytest.mark.slow),
        pytest.param("saved", 2, marks=pytest.mark.slow),
        pytest.param("evaluation", 9, marks=pytest.mark.slow),
        pytest.param("metrics", 6, marks=pytest.mark.slow),
    ],
)
def test_killed_run_resumes_to_the_same_results(uninterrupted, tmp_path, moment, count):
    run = tiny_run(tmp_path)
    kill_at(run, moment, count)
    assert train_run(run.path) == ExitCode.OK
    assert_same(run, uninterrupted)


@pytest.mark.slow
def test_run_killed_repeatedly_finishes(uninterrupted, tmp_path):
    run = tiny_run(tmp_path)
    for moment, count in (("step", 7), ("saved", 2), ("step", 5), ("evaluation", 5)):
        kill_at(run, moment, count)
    assert train_run(run.path) == ExitCode.OK
    assert_same(run, uninterrupted)


@pytest.mark.slow
def test_corrupt_latest_checkpoint_resumes_from_the_previous_one(uninterrupted, tmp_path):
    run = tiny_run(tmp_path)
    kill_at(run, "step", 18)
    last = CheckpointManager(run.checkpoints).latest()
    last.write_bytes(last.read_bytes()[:-1])
    assert train_run(run.path) == ExitCode.OK
    assert "falling back to the previous checkpoint" in run.log.read_text()
    assert_same(run, uninterrupted)


def start(run: RunFolder) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "attnzoo.worker", str(run.path)], stdout=subprocess.PIPE, text=True)


def wait_for_rows(run: RunFolder, count: int) -> None:
    limit = time.monotonic() + 120
    while len(run.read_metrics()) < count:
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_resume(tmp_path):
    run = tiny_run(tmp_path, train__steps="100000", train__eval_every="null", train__checkpoint_every="null")
    process = start(run)
    wait_for_rows(run, 3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    last = CheckpointManager(run.checkpoints).latest()
    assert run.read_status()["state"] == "interrupted"
    assert load_checkpoint(last)["step"] == run.read_status()["step"] >= run.read_metrics()[-1]["step"]
    assert f"latest checkpoint: {last}" in output
    assert "again to resume" in output
    assert "Traceback" not in output + run.log.read_text()


@pytest.mark.slow
def test_second_ctrl_c_aborts(tmp_path):
    """In a step that would take a minute."""
    run = tiny_run(tmp_path, train__steps="100000")
    process = begin(run, "sleep", 5)
    wait_for_rows(run, 2)
    time.sleep(1)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(1.5)
    assert process.exitcode is None
    os.kill(process.pid, signal.SIGINT)
    assert ended(process, 20) == ExitCode.INTERRUPTED
    assert run.read_status()["state"] == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2", "SIGHUP", "SIGQUIT"])
def test_other_signals_are_stop_requests_too(uninterrupted, tmp_path, name):
    run = tiny_run(tmp_path)
    assert ended(begin(run, name, 7)) == ExitCode.INTERRUPTED
    assert (run.read_status()["state"], run.read_status()["signal"]) == ("interrupted", name)
    assert (
        load_checkpoint(CheckpointManager(run.checkpoints).latest())["step"] == 7
    )  # not a multiple of checkpoint_every
    assert train_run(run.path) == ExitCode.OK
    assert_same(run, uninterrupted)
