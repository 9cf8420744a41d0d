"""The supervisor of a job while SLURM's controller is away, with programs that stand for SLURM's."""

import time
from pathlib import Path

import pytest

from attnzoo.errors import ExitCode
from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep import supervise
from attnzoo.sweep.outcome import ExitKind, Outcome

AWAY = """
echo 'srun: error: Unable to confirm allocation for job 7: Unable to contact slurm controller (connect failure)' >&2
echo 'srun: Check SLURM_JOB_ID environment variable. Expired or invalid job 7' >&2
exit 1
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(supervise, "CONTROLLER_POLL_SECONDS", 0.05)
    monkeypatch.setattr(supervise._Supervisor, "_install_handlers", lambda self, process: None)
    (tmp_path / "bin").mkdir()
    (tmp_path / "run").mkdir()
    program("squeue", "")
    # away for the first two questions
    program("scontrol", '[ "$1" = ping ] || { echo "JobState=RUNNING $@" >>asked; echo JobState=RUNNING; exit; }\n'
            'echo >>pings; [ $(wc -l <pings) -gt 2 ] && echo "Slurmctld(primary) at vm is UP"')  # fmt: skip
    return RunFolder(tmp_path / "run")


def program(name: str, text: str) -> None:
    path = Path("bin", name)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def supervisor(run: RunFolder) -> supervise._Supervisor:
    return supervise._Supervisor(run, nodes=1, processes=1, retries=3)


def test_processes_are_started_once_the_controller_is_back(run: RunFolder) -> None:
    """As after its restart: the run failed."""
    done = '{"state": "done", "heartbeat": 9e9}'
    program("srun", f"echo >>calls; [ $(wc -l <calls) -gt 1 ] && {{ echo '{done}' >{run.status}; exit 0; }}\n{AWAY}")
    assert supervisor(run).supervise() == ExitCode.OK
    assert len(Path("calls").read_text().splitlines()) == 2
    assert len(Path("pings").read_text().splitlines()) == 3


def test_a_controller_that_stays_away(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "CONTROLLER_SECONDS", 0)
    program("scontrol", "exit 1")
    program("srun", AWAY)
    assert supervisor(run).supervise() == ExitCode.FAILED
    assert run.read_status()["state"] == "failed"


def test_a_run_is_requeued_once_the_controller_is_back(run: RunFolder) -> None:
    run.write_status(state="running", heartbeat=time.time())
    supervisor(run)._handle(Outcome(ExitKind.INTERRUPTED, "SIGUSR2"))
    assert "requeue 7" in Path("asked").read_text()
