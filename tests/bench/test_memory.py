"""Peak memory of calls on the CPU."""

import ctypes
import subprocess
import sys

import pytest
import torch
from support.fresh import passes_in_subprocess

from attnzoo.bench import memory

CPU = torch.device("cpu")
MIB = 2**20


def test_peak_memory_counts_only_the_call():
    kept = torch.ones(10 * MIB)  # allocated before: not counted
    first = memory.peak_memory(lambda: torch.ones(16 * MIB).sum(), CPU)
    second = memory.peak_memory(lambda: torch.ones(4 * MIB).sum(), CPU)
    assert first / MIB == pytest.approx(64, abs=1)
    assert second / MIB == pytest.approx(16, abs=1)
    assert kept.sum() == 10 * MIB


def test_peak_memory_counts_allocations_outside_torch():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p

    def call() -> None:
        block = ctypes.c_void_p(libc.malloc(32 * MIB))
        ctypes.memset(block, 1, 32 * MIB)
        libc.free(block)

    assert memory.peak_memory(call, CPU) / MIB == pytest.approx(32, abs=1)


def test_peak_memory_is_the_highest_not_the_sum():
    def call() -> None:
        for _ in range(4):
            torch.ones(6 * MIB)

    assert memory.peak_memory(call, CPU) / MIB == pytest.approx(24, abs=1)


# Prints whether large blocks come from the heap, before and after its holes are filled.
HOLE = """
import ctypes
from attnzoo.bench import memory
size = 24 * 2**20
libc = ctypes.CDLL(None)
libc.sbrk.argtypes, libc.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_size_t
libc.malloc.argtypes, libc.malloc.restype, libc.free.argtypes = [ctypes.c_size_t], ctypes.c_size_t, [ctypes.c_size_t]
libc.free(libc.malloc(size))  # from now on blocks of this size come from the heap
hole, after = libc.malloc(size), libc.malloc(100_000)
libc.free(hole)
libc.mallopt(memory._M_MMAP_THRESHOLD, memory._LARGE)
def in_heap(size):
    block = libc.malloc(size)
    is_in_heap = block < libc.sbrk(0)
    libc.free(block)
    return is_in_heap
print(in_heap(size))
memory._fill_holes(libc)
print(in_heap(size), in_heap(2**20), in_heap(2**17))
"""


def test_holes_in_the_heap_are_filled_before_the_measurement():
    """Otherwise a tensor in a hole stays resident and the next one is mapped: twice the peak."""
    run = subprocess.run([sys.executable, "-c", HOLE], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["True", "False False False"]


# Prints the peak of a call that writes a block, after a thread (lost in the fork) has freed one of the same size.
FREED_BY_THREAD = """
import ctypes
from threading import Event, Thread
import torch
from attnzoo.bench import memory
size = 3 * 2**20
libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype, libc.free.argtypes = [ctypes.c_size_t], ctypes.c_size_t, [ctypes.c_size_t]
libc.free(libc.malloc(2 * size))  # from now on blocks of this size come from heaps
def write():
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    return block
def free_a_block():
    libc.free(write())
    freed.set()
    Event().wait()
freed = Event()
Thread(target=free_a_block, daemon=True).start()
freed.wait()
print(memory.peak_memory(lambda: libc.free(write()), torch.device("cpu")))
"""


def test_peak_memory_counts_blocks_that_fit_into_the_heap_of_another_thread():
    run = subprocess.run([sys.executable, "-c", FREED_BY_THREAD], capture_output=True, text=True, check=True)
    assert int(run.stdout) / MIB == pytest.approx(3, abs=0.5)


def test_peak_memory_of_a_backward_pass_includes_saved_tensors(request):
    # After fake tensors, torch has threads for gradients, which forked processes lack: no peak memory then.
    if passes_in_subprocess(request):
        return
    x = torch.ones(10 * MIB, requires_grad=True)

    def call() -> None:
        x.exp().exp().sum().backward()  # two results saved, their gradients come after

    call()
    assert memory.peak_memory(call, CPU) / MIB == pytest.approx(120, abs=5)


def test_peak_memory_is_none_if_the_call_fails():
    def call() -> None:
        raise RuntimeError

    assert memory.peak_memory(call, CPU) is None
