"""`make slurm-up`: its errors, the folders that it leaves alone, and where its cluster listens."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.slurm import ROOT, program, require

PROGRAM = str(ROOT / "slurm" / "local" / "cluster.py")


def call(action: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, PROGRAM, action, str(folder)], env=os.environ | environment, text=True, capture_output=True
    )


def test_missing_programs_give_a_one_line_error_and_create_nothing(tmp_path):
    done = call("up", tmp_path / "c", PATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "sbatch, squeue missing: install SLURM (Debian: apt-get install " in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_path_too_long_for_a_socket_is_an_error(tmp_path, cluster):
    done = call("up", tmp_path / ("x" * 90))
    assert done.returncode == 1
    assert "too long for a socket" in done.stderr


def occupied(folder: Path) -> Path:
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "thesis.tex").write_text("years of work")
    return folder


def linked(folder: Path) -> Path:
    folder.symlink_to(occupied(folder.with_name("target")))
    return folder


def linked_empty(folder: Path) -> Path:
    folder.with_name("target").mkdir()
    folder.symlink_to(folder.with_name("target"))
    return folder


def a_file(folder: Path) -> Path:
    folder.write_text("x")
    return folder


def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder)
    return folder


def marked_by_a_link(folder: Path) -> Path:
    (occupied(folder) / program.MARKER).symlink_to("/etc/passwd")
    return folder


def marked_by_a_folder(folder: Path) -> Path:
    (occupied(folder) / program.MARKER).mkdir()
    return folder


def marked_by_another_user(folder: Path) -> Path:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED HERE: needs root")
    (occupied(folder) / program.MARKER).touch()
    os.chown(folder / program.MARKER, 65534, -1)
    return folder


def of_another_user(folder: Path) -> Path:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED HERE: needs root")
    folder.mkdir()
    os.chown(folder, 65534, -1)
    return folder


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("action", ["up", "down"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (occupied, "holds other files"),
        (linked, "is a link"),
        (linked_empty, "is a link"),
        (a_file, "is a file"),
        (a_pipe, "is a pipe"),
        (marked_by_a_link, "holds other files"),
        (marked_by_a_folder, "holds other files"),
        (marked_by_another_user, "holds other files"),
        (of_another_user, "belongs to another user"),
    ],
)
def test_folders_of_others_are_left_alone(tmp_path, action, make, reason):
    folder = make(tmp_path / "c")
    before = tree(tmp_path)
    done = call(action, folder)
    assert done.returncode == 1
    assert f"{folder}: {reason}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert tree(tmp_path) == before


@pytest.mark.parametrize("action", ["up", "down"])
def test_an_empty_path_is_refused(tmp_path, monkeypatch, action):
    """It was the current folder, here an empty one."""
    monkeypatch.chdir(tmp_path)
    done = subprocess.run([sys.executable, PROGRAM, action, ""], text=True, capture_output=True)
    assert done.returncode == 2
    assert done.stderr.endswith("error: argument folder: an empty path: name a new or empty folder\n")
    assert not list(tmp_path.iterdir())


def test_the_folder_is_private_and_the_daemons_listen_here_alone(cluster):
    assert cluster.folder.stat().st_mode & 0o777 == 0o700
    pids = program._daemons(cluster.folder)
    inodes = {os.readlink(path) for pid in pids for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes]
    assert len(listening) == 3  # the controller and two nodes
    assert {address.split(":")[0] for address in listening} == {"0100007F"}  # 127.0.0.1


def test_a_cluster_can_be_started_again_in_its_folder(tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / program.MARKER).touch()
    (folder / "state").mkdir()
    program._check_folder(folder)


def test_a_running_cluster_is_found_without_its_files():
    """`up` started a second one over it, and `down` left the first one running."""
    require(program.REQUIRED_PROGRAMS)
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as name:
        folder = Path(name).resolve()
        program.up(folder)
        try:
            daemons = program._daemons(folder)
            assert list(daemons.values()) == ["munged", "slurmctld", "slurmd", "slurmd"]
            for path in [path for path in folder.iterdir() if path.is_file() and path.name != program.MARKER]:
                path.unlink()
            done = call("up", folder)
            assert (done.returncode, done.stderr.count("\n")) == (1, 1)
            assert f"a cluster is already running in {folder}" in done.stderr
            assert program._daemons(folder) == daemons
        finally:
            program.down(folder)
        assert not program._daemons(folder)
