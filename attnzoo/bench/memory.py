"""Peak memory of a call."""

import ctypes
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import torch

from attnzoo.allocator import allow_mapped_blocks
from attnzoo.ops import release_workspace

METHODS = {
    "cuda": "torch.cuda.max_memory_allocated above what was allocated before the call",
    "cpu": "increase of the peak resident size (VmHWM) during a call, minimum of three, in a forked process",
}
TIMEOUT_SECONDS = 600
REPEATS = 3
_CLEAR, _STATUS, _MAPS = (Path("/proc/self", name) for name in ("clear_refs", "status", "maps"))
_RESET_PEAK = "5"  # proc(5): /proc/pid/clear_refs
_M_MMAP_THRESHOLD, _LARGE = -3, 2**16  # mallopt(3)


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Peak bytes of `call` above the baseline, its result included; METHODS says how they are measured.

    `call` should have run before, so that one-time allocations are not counted. None if the
    system does not support the measurement.
    """
    if device.type == "cuda":
        return _peak_on_gpu(call, device)
    return _peak_in_fork(call) if _CLEAR.exists() else None


def _peak_on_gpu(call: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_in_fork(call: Callable[[], object]) -> int | None:
    """None if the call fails in the forked process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(TIMEOUT_SECONDS)
            torch.set_num_threads(1)  # threads do not survive a fork
            os.write(writer, str(_peak_in_process(call)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        output = pipe.read()
    os.waitpid(child, 0)
    return int(output) if output else None


def _peak_in_process(call: Callable[[], object]) -> int:
    """Counts every allocation, also of compiled code outside torch's allocator."""
    libc = ctypes.CDLL(None)
    allow_mapped_blocks()
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)  # malloc then returns every freed block to the system
    call()
    peaks = []
    for _ in range(REPEATS):
        release_workspace()
        _fill_holes(libc)
        libc.malloc_trim(0)  # else the call could reuse free pages that are still resident
        _CLEAR.write_text(_RESET_PEAK, encoding="utf-8")
        before = _read_status_bytes("VmRSS")
        call()
        peaks.append(max(0, _read_status_bytes("VmHWM") - before))
    return min(peaks)  # swapped-out pages that return during a call can only raise the peak


def _fill_holes(libc: ctypes.CDLL) -> None:
    """Allocate all free blocks of malloc's heap, without touching them, so that new tensors are mapped and counted.

    A tensor in such a hole would keep its pages resident after it is freed. No block is larger than the heap: if malloc
    fails it moves this thread to another thread's heap, and to the holes there.
    """
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_size_t
    libc.free.argtypes = [ctypes.c_size_t]
    start, end = _heap_range()
    size = end - start
    while size >= _LARGE:
        block = libc.malloc(size)
        if not start < block < end:  # failed or mapped: no hole of this size is left
            libc.free(block)
            size //= 2


def _heap_range() -> tuple[int, int]:
    """Addresses of the main thread's heap."""
    parts = re.findall(r"^(\w+)-(\w+) .*\[heap\]$", _MAPS.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return (int(parts[0][0], 16), int(parts[-1][1], 16)) if parts else (0, 0)


def _read_status_bytes(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    assert match, f"{_STATUS} has no {field}"
    return 1024 * int(match[1])
