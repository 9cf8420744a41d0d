"""What SLURM's commands print is read as it is meant; tests/slurm asks a real cluster."""

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


def test_variables_of_the_user_do_not_change_the_answer(squeue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQUEUE_PARTITION hid jobs, so that runs were submitted again."""
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    squeue.write_text("")
    assert slurm.user_jobs() == []
    assert "SQUEUE_PARTITION" not in (squeue.parent / "environment").read_text()
