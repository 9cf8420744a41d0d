"""Two processes on Gloo give the results of one, end together and do not hang."""

import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from support import engine_rank, engine_runs
from support.classification import tiny_classifier
from support.engine import results, tiny_run

from attnzoo.engine import distributed
from attnzoo.engine.checkpoint import CheckpointManager, load_checkpoint
from attnzoo.errors import ExitCode
from attnzoo.rundir import attempts
from attnzoo.rundir.folder import RunFolder
from attnzoo.worker.train import train_run

STILL = {"model__dropout": "0", "model__backbone__norm": "frozen", "train__log_every": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
WORKER = ["-m", "attnzoo.worker"]
PARALLEL = ("ddp", "fsdp2")


def train_together(*runs: RunFolder) -> None:
    """Train runs one after the other in one group of two processes, whose imports take longer than a run."""
    paths = [str(run.path) for run in runs]
    done = subprocess.run([*TORCHRUN, engine_runs.__file__, *paths], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def assert_close(run: RunFolder, other: RunFolder) -> None:
    for ours, theirs in zip(results(run), results(other), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_two_processes_give_the_losses_and_metrics_of_one(tmp_path):
    one = tiny_run(tmp_path / "one", **STILL)
    two = tiny_run(tmp_path / "two", **STILL, processes="2")
    assert train_run(one.path) == ExitCode.OK
    done = subprocess.run([*TORCHRUN, *WORKER, str(two.path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert attempts.environments(two) == attempts.environments(one)
    assert_close(two, one)
    ours, theirs = (load_checkpoint(CheckpointManager(run.checkpoints).latest())["model"] for run in (two, one))
    for name, value in ours.items():
        # looser than the losses: AdamW divides small gradients by their own size, rounding included
        assert (value - theirs[name]).abs().max() < 1e-4, name


def test_rank_and_rendezvous_under_srun(monkeypatch):
    for name, value in {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "node7")
    first = distributed.read_env()
    assert first[:3] == (3, 4, 1)
    assert first.init_method.startswith("tcp://node7:")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert distributed.read_env().init_method != first.init_method  # the old port may be taken
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert distributed.read_env().init_method == "tcp://node7:1234"


def test_failed_rendezvous_names_its_address(monkeypatch):
    monkeypatch.setattr(distributed, "TIMEOUT", timedelta(seconds=1))
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(distributed.RendezvousError, match=r"rank 1 of 2: rendezvous at 127\.0\.0\.1:9 failed"):
        distributed.init("cpu")


@pytest.mark.slow
def test_two_sharded_processes_give_the_results_of_one_and_resume(tmp_path):
    sharded = STILL | {"processes": "2", "train__parallel": "fsdp2"}
    one, uninterrupted = tiny_run(tmp_path / "one", **STILL), tiny_run(tmp_path / "whole", **sharded)
    assert train_run(one.path) == ExitCode.OK
    together = halfway(one, tmp_path / "together", **sharded)
    train_together(uninterrupted, together)
    assert_close(uninterrupted, one)
    assert_close(together, uninterrupted)
    own, every = map(int, re.search(r"sharded: (\d+) of (\d+) parameters", uninterrupted.log.read_text()).groups())
    assert own < 0.55 * every
    assert_loads_in_one_process(uninterrupted, one)
    run = tiny_run(tmp_path / "run", **sharded)
    process = subprocess.Popen([*TORCHRUN, *WORKER, str(run.path)], stdout=subprocess.DEVNULL)
    interrupt_at_a_step(process, run)
    assert 0 < run.last_step() < 20
    assert subprocess.run([*TORCHRUN, *WORKER, str(run.path)], capture_output=True, timeout=300).returncode == 0
    assert results(run) == results(uninterrupted)
    alone = halfway(uninterrupted, tmp_path / "alone", **STILL)
    assert train_run(alone.path) == ExitCode.OK
    assert_close(alone, one)


def halfway(run: RunFolder, folder: Path, **changes: str) -> RunFolder:
    """A run at its second-last checkpoint, to be resumed with `changes`."""
    begun = tiny_run(folder, **changes)
    shutil.copytree(run.checkpoints, begun.checkpoints)
    shutil.copy(run.metrics, begun.metrics)
    for path in (CheckpointManager(begun.checkpoints).latest(), CheckpointManager(begun.checkpoints).best()):
        path.unlink()
    assert 0 < begun.last_step() < run.last_step()
    return begun


def assert_loads_in_one_process(run: RunFolder, other: RunFolder) -> None:
    """The checkpoint holds what that of a run of one process holds, as plain tensors."""
    ours, theirs = (load_checkpoint(CheckpointManager(each.checkpoints).latest()) for each in (run, other))
    for part in ("model", "ema"):
        assert ours[part].keys() == theirs[part].keys()
        for name, value in ours[part].items():
            assert type(value) is torch.Tensor
            assert (value - theirs[part][name]).abs().max() < 1e-4, name
    for number, state in theirs["optimizer"]["state"].items():
        assert {name: value.shape for name, value in state.items()} == {
            name: value.shape for name, value in ours["optimizer"]["state"][number].items()
        }


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_train_a_classifier_as_one(tmp_path):
    """Without randomness per process: mixup and stochastic depth."""
    still = {"model__drop_path": "0", "data__mixup": "0", "data__cutmix": "0", "train__log_every": "1"}
    one = tiny_classifier(tmp_path / "one", **still)
    assert train_run(one.path) == ExitCode.OK
    twos = [tiny_classifier(tmp_path / p, **still, processes="2", train__parallel=p) for p in PARALLEL]
    train_together(*twos)
    for two in twos:
        assert_close(two, one)


@pytest.mark.slow
@pytest.mark.long
def test_heads_without_loss_and_accumulation_work_in_two_processes(tmp_path):
    options = STILL | {"model__loss__auxiliary": "false", "train__accumulate": "2", "train__steps": "6"}
    one = tiny_run(tmp_path / "one", **options, train__parallel="fsdp2")  # which changes nothing for one process
    assert train_run(one.path) == ExitCode.OK
    twos = [tiny_run(tmp_path / p, **options, processes="2", train__parallel=p) for p in PARALLEL]
    train_together(*twos)
    for two in twos:
        assert_close(two, one)


@pytest.mark.slow
def test_failing_rank_ends_all_and_its_error_is_recorded(tmp_path):
    run = tiny_run(tmp_path, processes="2")
    started = time.monotonic()
    done = subprocess.run([*TORCHRUN, engine_rank.__file__, str(run.path)], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert time.monotonic() - started < 90
    status = run.read_status()
    assert (status["state"], status["error"]) == ("failed", "RuntimeError: injected failure")
    assert "rank 1 failed" in run.log.read_text()


@pytest.mark.slow
def test_interrupt_stops_both_ranks_at_one_step_and_both_resume(tmp_path):
    run, uninterrupted = (tiny_run(tmp_path / name, processes="2", train__steps="60") for name in ("run", "whole"))
    command = [*TORCHRUN, *WORKER, str(run.path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    interrupt_at_a_step(process, run)
    assert run.read_status()["state"] == "interrupted"
    assert 0 < run.last_step() < 60
    train_together(run, uninterrupted)  # which also shows that runs in one process are independent
    assert results(run) == results(uninterrupted)  # dropout and BatchNorm of both ranks included


def interrupt_at_a_step(process: "subprocess.Popen[bytes]", run: RunFolder) -> None:
    """Ctrl-C once the run has taken steps, and wait for its end."""
    limit = time.monotonic() + 120
    while len(run.read_metrics()) < 2 and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=120)
