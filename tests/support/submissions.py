"""Submissions through submitit to programs that stand for SLURM's."""

from pathlib import Path

import pytest

from attnzoo import run as attnzoo_run
from attnzoo.rundir.ledger import job_comment
from attnzoo.sweep import submit
from attnzoo.sweep.expand import RunSpec
from attnzoo.sweep.folder import SweepFolder

EXPERIMENT = """
name: x
launcher: slurm
base: base/detr_scenes.yaml
data: {dataset: {name: digit_scenes, image_size: 32, sizes: [6, 14], train_images: 24, val_images: 6}, batch_size: 4}
model: {dim: 16, heads: 2, ffn: 16, queries: 5}
train: {steps: 5, eval_every: null}
sweep: {seeds: [%s]}
slurm: {partition: small, time: 1, signal_seconds: 30, memory: 2G, parallelism: 3, options: {nice: 10}}
"""
REFUSED = "echo 'sbatch: error: Batch job submission failed: invalid partition' >&2; exit 1"
UNCERTAIN = "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1"
TEST_ONLY = '[ "$1" = --test-only ] && exit 0; '


def stand_in(name: str, text: str) -> None:
    """A shell script in ./bin for a program of SLURM."""
    program = Path("bin", name)
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


def accepted(job: int) -> str:
    """What sbatch answers."""
    return f"echo 'Submitted batch job {job}'"


def prepared(folder: Path, seeds: str, monkeypatch: pytest.MonkeyPatch, sbatch: str) -> SweepFolder:
    """A sweep's folder, with its runs; `sbatch` is the shell script that stands for it."""
    monkeypatch.chdir(folder)
    (folder / "bin").mkdir()
    stand_in("sbatch", sbatch)
    stand_in("squeue", "")
    stand_in("srun", "")  # submitit asks whether it is there
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    (folder / "x.yaml").write_text(EXPERIMENT % seeds)
    return SweepFolder(folder / "runs" / "x")


def submit_runs(folder: SweepFolder, runs: list[RunSpec]) -> list[str]:
    """Submit, without the checks of `run`."""
    folder.create(runs, "x.yaml")
    code = submit.snapshot(runs, folder)
    with folder.ledger.update() as content:
        submissions = submit.reserve(submit.group_by_resources(runs), folder, content, code)
    return submit.submit(submissions, folder)


def run(*options: str) -> int:
    """Submit as a user does; the model's check is not the subject here."""
    return attnzoo_run.main(["x.yaml", *options])


def in_queue(folder: SweepFolder, job: str, number: str = "001") -> str:
    """A squeue that knows a pending job with the comment of a submission."""
    return f"echo '{job}|PENDING||1:00|Priority|{job_comment(folder.ledger.submission_folder(number))}'"
