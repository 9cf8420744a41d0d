"""The settings of malloc: freed memory is used again without page faults."""

import os
import subprocess
import sys

import pytest

from attnzoo.worker.malloc import VARIABLE

PROGRAM = """
import ctypes, os, resource, sys
from attnzoo.worker.malloc import restart_with_tunables

pid, argument = sys.argv[1:]
if argument == "set":
    restart_with_tunables()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def allocate():
    block = libc.malloc(8 << 20)
    ctypes.memset(block, 1, 8 << 20)
    libc.free(ctypes.c_void_p(block))
for _ in range(3):
    allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    allocate()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, os.getpid(), sys.argv[1:], file=sys.stderr)
"""
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has these settings")


def page_faults(argument: str, variables: dict[str, str]) -> int:
    """Page faults of a process that uses 8 MiB three times."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE} | variables
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "first", argument], env=environment, text=True, stderr=subprocess.PIPE
    )
    output = process.communicate(timeout=60)[1]
    faults, pid, arguments = output.split(maxsplit=2)
    assert int(pid) == process.pid
    assert arguments.strip() == str(["first", argument])
    return int(faults)


@linux_only
def test_freed_memory_is_used_again_without_page_faults():
    pages = 8 * 2**20 // os.sysconf("SC_PAGESIZE")
    assert page_faults("set", {}) < pages / 10


@linux_only
def test_settings_of_the_user_are_kept():
    with_own = page_faults("set", {VARIABLE: "glibc.malloc.mmap_threshold=1000000"})
    assert with_own == pytest.approx(page_faults("none", {VARIABLE: "glibc.malloc.mmap_threshold=1000000"}), abs=50)
    assert with_own > 8 * 2**20 / os.sysconf("SC_PAGESIZE")


@linux_only
@pytest.mark.parametrize("module", [["attnzoo.run"], ["attnzoo", "run"]])
@pytest.mark.parametrize("launch", [{"RANK": "0", "WORLD_SIZE": "2"}, {"SLURM_STEP_NUM_TASKS": "2"}, {}])
def test_processes_of_torchrun_and_srun_have_the_settings(tmp_path, module, launch):
    """Others, such as one that starts workers, have not."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import os\nwith open({str(tmp_path / 'starts')!r}, 'a') as file: print({VARIABLE!r} in os.environ, file=file)"
    )
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE} | launch
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, "-m", *module, "missing.yaml"], cwd=tmp_path, env=environment, text=True, capture_output=True
    )
    assert "missing.yaml: no such experiment file" in done.stderr
    assert (tmp_path / "starts").read_text().split() == (["False", "True"] if launch else ["False"])
