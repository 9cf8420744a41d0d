"""What a run of several processes on one machine listens on."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.engine import tiny_run

LISTEN = "0A"


def children(root: int) -> set[int]:
    """The process and all below it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listening(root: int) -> set[str]:
    """The addresses, in hexadecimal, on which processes below `root` listen."""
    inodes = set()
    for pid in children(root):
        try:
            links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        inodes |= {match[1] for link in links if (match := re.fullmatch(r"socket:\[(\d+)\]", link))}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {row[1].partition(":")[0] for row in rows if row[3] == LISTEN and row[9] in inodes}


@pytest.mark.slow
def test_processes_of_one_machine_listen_on_loopback_alone(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", processes="2")
    command = [sys.executable, "-m", "attnzoo.worker.launch", "2", str(run.path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    addresses: set[str] = set()
    while process.poll() is None:
        addresses |= listening(process.pid)
        time.sleep(0.1)
    assert process.returncode == 0
    assert run.read_status()["state"] == "done"
    assert addresses <= {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert "0100007F" in addresses
