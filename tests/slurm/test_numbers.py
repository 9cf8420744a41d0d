"""Numbers of jobs that SLURM gives again, as after it was installed anew: the jobs of others are left alone."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.slurm import Cluster, Sweep, program, require

from attnzoo import __main__ as attnzoo_main

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
HELD = ("sweep.seeds=[0, 1]", "slurm.options={hold: true}")


@pytest.fixture
def folder() -> Iterator[Path]:
    """That of a cluster, with a short path: it holds Unix sockets."""
    require(program.REQUIRED_PROGRAMS)
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    yield folder / "c"
    shutil.rmtree(folder, ignore_errors=True)


def queue(cluster: Cluster) -> dict[str, str]:
    """The comments of the jobs that wait, by task."""
    rows = cluster.ask("squeue", "--noheader", "--array", "--format=%i %k").splitlines()
    return dict(row.split(" ", 1) for row in rows)


def test_the_job_of_another_sweep_with_the_same_number_is_left_alone(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sweep, other = Sweep(tmp_path / "a"), Sweep(tmp_path / "b")
    with Cluster(folder).up():
        sweep.submit(*HELD)
    with Cluster(folder).up() as cluster:
        other.submit(*HELD)
        assert other.job("seed=0") == sweep.job("seed=0")
        before = queue(cluster)
        states = sweep.states().values()
        assert [(status.state, status.active, status.missing) for status in states] == [("pending", False, True)] * 2
        capsys.readouterr()
        assert attnzoo_main.main(["cancel", str(sweep.runs)]) == 0
        number = other.job("seed=0").partition("_")[0]
        assert f"job {number} is not of this sweep, by its comment; left alone\n" in capsys.readouterr().out
        assert queue(cluster) == before
        sweep.submit(*HELD)
        assert len(queue(cluster)) == 4
        assert all(status.active for status in sweep.states().values())

        shutil.copytree(sweep.folder / "runs", tmp_path / "copy")
        assert attnzoo_main.main(["cancel", str(tmp_path / "copy" / "faults")]) == 0
        assert len(queue(cluster)) == 4

        (sweep.runs / "slurm" / "002" / "job").write_text("999\n")
        (sweep.runs / "sweep.json").write_text("null")
        assert attnzoo_main.main(["cancel", str(sweep.runs)]) == 0
        assert queue(cluster) == before
