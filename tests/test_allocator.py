"""Freed memory stays in the process: the next tensors of the same size cause no page faults."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="NOT TESTED HERE: needs glibc")

# Prints the page faults of a tensor of 64 MiB, after others of the same size were freed, and its measured peak memory.
FAULTS = """
import resource
import torch
from attnzoo.allocator import keep_freed_memory
from attnzoo.bench.memory import peak_memory
def faults():
    for _ in range(10):
        torch.empty(2**24).fill_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**24).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.set_num_threads(1)
default = faults()
assert keep_freed_memory()
print(default, faults(), peak_memory(lambda: torch.empty(2**24).fill_(1), torch.device("cpu")))
"""


def test_freed_memory_is_kept_and_still_counted() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    default, kept, peak = map(int, done.stdout.split())
    assert default > 10_000  # of 4 KiB
    assert kept < 100
    assert peak / 2**20 == pytest.approx(64, abs=1)
