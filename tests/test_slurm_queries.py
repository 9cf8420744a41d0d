"""What SLURM's commands print is read as it is meant; tests/slurm asks a real cluster."""

import gzip
import os
import re
from pathlib import Path

import pytest

from attnzoo import slurm


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, which prints what is in the file and the variables that it was given."""
    answer = tmp_path / "answer"
    program = tmp_path / "squeue"
    program.write_text(f'#!/bin/sh\nenv > "{tmp_path}/environment"\ncat "{answer}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return answer


def test_comments_of_other_jobs_may_contain_line_breaks(squeue: Path) -> None:
    squeue.write_text("1|RUNNING|node1|10:00|None|a\nb\n2_0|PENDING||1:00|Priority|c|d\n")
    assert [(job.id, job.comment) for job in slurm.user_jobs()] == [("1", "a"), ("2_0", "c|d")]


@pytest.mark.parametrize("name", ["SQUEUE_PARTITION", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SCANCEL_STATE"])
def test_variables_of_the_user_do_not_change_the_answer(
    squeue: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """SQUEUE_PARTITION hid jobs, so that runs were submitted again."""
    monkeypatch.setenv(name, "other")
    monkeypatch.setenv("SLURM_CONF", "/there/slurm.conf")
    squeue.write_text("")
    assert slurm.user_jobs() == []
    environment = (squeue.parent / "environment").read_text()
    assert f"{name}=other" not in environment
    assert "SLURM_CONF=/there/slurm.conf" in environment


MANUAL = Path("/usr/share/man/man1/sbatch.1.gz")
# The input environment variables of sbatch 22.05 and 24.11, by its manual.
SBATCH_INPUT = re.findall(
    r"\w+",
    """
SBATCH_ACCOUNT SBATCH_ACCTG_FREQ SBATCH_ARRAY_INX SBATCH_BATCH SBATCH_CLUSTERS SBATCH_CONSTRAINT SBATCH_CONTAINER
SBATCH_CONTAINER_ID SBATCH_CORE_SPEC SBATCH_CPUS_PER_GPU SBATCH_DEBUG SBATCH_DELAY_BOOT SBATCH_DISTRIBUTION SBATCH_ERROR
SBATCH_EXCLUSIVE SBATCH_EXPORT SBATCH_GET_USER_ENV SBATCH_GPU_BIND SBATCH_GPU_FREQ SBATCH_GPUS SBATCH_GPUS_PER_NODE
SBATCH_GPUS_PER_TASK SBATCH_GRES SBATCH_GRES_FLAGS SBATCH_HINT SBATCH_IGNORE_PBS SBATCH_INPUT SBATCH_JOB_NAME
SBATCH_MEM_BIND SBATCH_MEM_PER_CPU SBATCH_MEM_PER_GPU SBATCH_MEM_PER_NODE SBATCH_NETWORK SBATCH_NO_KILL
SBATCH_NO_REQUEUE SBATCH_OPEN_MODE SBATCH_OUTPUT SBATCH_OVERCOMMIT SBATCH_PARTITION SBATCH_POWER SBATCH_PROFILE
SBATCH_QOS SBATCH_REQ_SWITCH SBATCH_REQUEUE SBATCH_RESERVATION SBATCH_SIGNAL SBATCH_SPREAD_JOB SBATCH_THREAD_SPEC
SBATCH_THREADS_PER_CORE SBATCH_TIMELIMIT SBATCH_TRES_BIND SBATCH_TRES_PER_TASK SBATCH_USE_MIN_NODES SBATCH_WAIT
SBATCH_WAIT_ALL_NODES SBATCH_WAIT4SWITCH SBATCH_WCKEY SLURM_CLUSTERS SLURM_CONF SLURM_DEBUG_FLAGS SLURM_EXIT_ERROR
SLURM_HINT SLURM_STEP_KILLED_MSG_NODE_ID SLURM_UMASK
    """,
)
# Of a surrounding job, which the new job's srun would read.
OF_A_JOB = ["SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_CPU_BIND", "SLURM_MEM_PER_CPU", "SRUN_CPUS_PER_TASK"]


def test_sbatch_follows_the_script_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It prefers its variables to the script; an account and the like stay as defaults of what the script leaves."""
    for name in [*SBATCH_INPUT, *OF_A_JOB]:
        monkeypatch.setenv(name, "1")
    before = dict(os.environ)
    with slurm.submission_environment({"partition", "qos"}):
        left = {name for name in os.environ if name in before and name.startswith(("SBATCH_", "SLURM_", "SRUN_"))}
    assert left == {"SLURM_CONF", "SBATCH_ACCOUNT", "SBATCH_CONSTRAINT", "SBATCH_RESERVATION", "SBATCH_WCKEY"}
    assert dict(os.environ) == before
    ignored = slurm.ignored_variables({"partition", "qos"})
    assert {"SBATCH_PARTITION", "SBATCH_ARRAY_INX"} < set(ignored)
    assert not left & set(ignored)


@pytest.mark.skipif(not MANUAL.exists(), reason="NOT TESTED HERE: no manual of sbatch")
def test_list_of_variables_is_that_of_the_manual() -> None:
    text = gzip.decompress(MANUAL.read_bytes()).decode(errors="replace")
    section = text.partition("INPUT ENVIRONMENT")[2].partition("OUTPUT ENVIRONMENT")[0]
    assert set(re.findall(r"^\\fB((?:SBATCH|SLURM)_\w+)", section, re.MULTILINE)) <= set(SBATCH_INPUT)
