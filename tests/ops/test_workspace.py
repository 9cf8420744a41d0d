"""Workspace memory that the CPU kernels keep between calls."""

import os
import subprocess
import sys

import pytest

from attnzoo.ops import library

pytestmark = pytest.mark.skipif(not library.has_kernel("cpu"), reason="NOT TESTED HERE: the operators are not compiled")

# Prints the growth of resident memory in KiB by 20 calls, and then by the release of the workspace.
RESIDENT = """
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import torch
from attnzoo.ops import ms_deform_attn, release_workspace
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
torch.set_num_threads(2)
side = 128
value = torch.rand(1, side**2, 8, 32, requires_grad=True)
locations, weights = torch.rand(1, side**2, 8, 1, 4, 2), torch.rand(1, side**2, 8, 1, 4)
def call():
    output = ms_deform_attn(value, ((side, side),), locations, weights)
    return torch.autograd.grad(output.sum(), value)[0]
expected = call()
before = resident()
for _ in range(10):
    call()
kept = resident()
with ThreadPoolExecutor(4) as pool:  # several calls at a time, each with blocks of its own
    assert all(map(expected.equal, pool.map(lambda _: call(), range(8))))
before_release = resident()
release_workspace()
print(kept - before, before_release - resident())
assert call().equal(expected)
"""


def test_workspace_is_kept_between_calls_until_it_is_released() -> None:
    mapped = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"}  # freed results leave the process
    done = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, timeout=120, env=mapped)
    assert done.returncode == 0, done.stderr
    growth, released = map(int, done.stdout.split())
    assert growth < 72 * 1024  # at most 64 MiB are kept; the calls have used more than 200
    assert 1024 < released < 72 * 1024
