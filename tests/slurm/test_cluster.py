"""The errors of `make slurm-up`."""

import subprocess
import sys

from support.slurm import ROOT


def test_missing_programs_give_a_one_line_error_and_create_nothing(tmp_path):
    command = [sys.executable, str(ROOT / "slurm" / "local" / "cluster.py"), "up", str(tmp_path / "c")]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, text=True, capture_output=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "sbatch, squeue missing: install SLURM (Debian: apt-get install " in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_path_too_long_for_a_socket_is_an_error(tmp_path, cluster):
    long = tmp_path / ("x" * 90)
    command = [sys.executable, str(ROOT / "slurm" / "local" / "cluster.py"), "up", str(long)]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 1
    assert "too long for a socket" in done.stderr
