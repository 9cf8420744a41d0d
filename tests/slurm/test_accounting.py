"""Jobs that slurmctld has dropped and that recorded nothing themselves: sacct says how they ended."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.slurm import Cluster, Sweep, program, report, require, wait

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


@pytest.fixture(scope="module")
def accounted() -> Iterator[Cluster]:
    """A cluster with accounting, whose controller drops finished jobs after two seconds."""
    require(program.REQUIRED_PROGRAMS | program.ACCOUNTING_PROGRAMS)
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    with Cluster(folder / "c").up(accounting=True) as started:
        yield started
    folder.rmdir()


@pytest.fixture
def sweep(accounted, tmp_path, monkeypatch) -> Sweep:
    monkeypatch.chdir(tmp_path)
    return Sweep(tmp_path)


def wait_until_dropped(sweep: Sweep, name: str) -> None:
    command = ["squeue", "--noheader", "--states=all", "--jobs", sweep.job(name).partition("_")[0]]
    wait(
        lambda: "Invalid job id" in subprocess.run(command, text=True, capture_output=True).stderr,
        90,
        "for the job to be dropped",
    )


def test_jobs_that_fail_before_training(accounted, sweep):
    sweep.overrides += ["sweep.seeds=[0, 1]", "train.steps=5"]
    sweep.submit("slurm.setup=[exit 3]")
    wait_until_dropped(sweep, "seed=0")
    assert accounted.ask("sacct", "-nPX", "-o", "State", "-j", sweep.job("seed=1")) == "FAILED\n"
    for state in sweep.states().values():
        assert (state.state, state.note, state.active) == ("failed", "failed: no log output", False)
    sweep.submit("--only", "failed")
    states = sweep.wait_for_end().values()
    assert {status.state for status in states} == {"done"}
    report(
        "job fails before it trains, and is dropped by slurmctld",
        2,
        sum(status.steps_lost for status in states),
        allowed=0,
    )


def test_job_cancelled_before_it_starts(accounted, sweep, capsys):
    sweep.overrides += ["train.steps=5"]
    sweep.submit("slurm.options={hold: true}")
    assert (sweep.state().state, sweep.state().note) == ("pending", "JobHeldUser")
    accounted.ask("scancel", sweep.job())
    wait_until_dropped(sweep, "seed=3")
    assert (sweep.state().state, sweep.state().active) == ("cancelled", False)
    capsys.readouterr()
    sweep.submit("--only", "missing")
    assert capsys.readouterr().out.startswith("1 of 1 run skipped (done, already submitted, corrupt or not selected)\n")
    sweep.submit("--only", "interrupted")
    state = sweep.wait_for_end()["seed=3"]
    assert state.state == "done"
    report("job cancelled before it starts, and dropped by slurmctld", 1, state.steps_lost, allowed=0)
