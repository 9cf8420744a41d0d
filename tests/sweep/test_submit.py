"""Submissions through the real submitit to programs that stand for sbatch and srun."""

import sys
from pathlib import Path

import pytest

from attnzoo.config.load import Experiment
from attnzoo.errors import UserError
from attnzoo.sweep import submit
from attnzoo.sweep.expand import expand
from attnzoo.sweep.folder import SweepFolder

EXPERIMENT = """
name: x
launcher: slurm
train: {steps: 5}
sweep: {seeds: [%s]}
slurm: {partition: small, time: 1, signal_seconds: 30, memory: 2G, parallelism: 3, options: {nice: 10}}
"""


def prepared(folder: Path, seeds: str, monkeypatch: pytest.MonkeyPatch, sbatch: str) -> SweepFolder:
    """A sweep's folder, with its runs; `sbatch` is the shell script that stands for it."""
    monkeypatch.chdir(folder)
    (folder / "bin").mkdir()
    for name, text in (("sbatch", sbatch), ("srun", "")):
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    (folder / "x.yaml").write_text(EXPERIMENT % seeds)
    return SweepFolder(folder / "runs" / "x")


@pytest.mark.parametrize("seeds", ["0", "0, 1, 2, 3"])
def test_the_script_of_a_dry_run_is_the_submitted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: str
) -> None:
    folder = prepared(tmp_path, seeds, monkeypatch, f"cp $1 {tmp_path}/submitted; echo Submitted batch job 7")
    runs = folder.assign(expand(Experiment("x.yaml")))
    (group,) = submit.group_by_resources(runs)
    folder.create(runs, "x.yaml")
    (line,) = submit.submit([group], folder)
    assert line.startswith(f"submitted {'1 run' if len(runs) == 1 else '4 runs'} as job 7 ")
    (code,) = (folder.path / "slurm" / "code").iterdir()
    submitted = (tmp_path / "submitted").read_text()
    assert submitted == group.script(folder.ledger.submission_folder("001"), code)
    assert ("#SBATCH --array=0-3%3" in submitted) == (len(runs) == 4)
    assert "#SBATCH --nice=10" in submitted
    assert f"{sys.executable} -u -m submitit" in submitted
    assert folder.ledger.read()["submissions"]["001"]["job"] == "7"
    assert f"group 1: {'1 run' if len(runs) == 1 else '4 runs'} with " in submit.format_dry_run([group], folder)


def test_what_sbatch_refuses_is_one_line_and_leaves_no_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepared(tmp_path, "0", monkeypatch, "echo 'sbatch: error: invalid partition' >&2; exit 1")
    runs = folder.assign(expand(Experiment("x.yaml")))
    folder.create(runs, "x.yaml")
    with pytest.raises(UserError, match="invalid partition") as caught:
        submit.submit(submit.group_by_resources(runs), folder)
    assert caught.value.keys == ("slurm",)
    assert folder.ledger.read()["submissions"] == {}
