"""Peak memory of a call, measured."""

import ctypes
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import torch

METHODS = {
    "cuda": "torch.cuda.max_memory_allocated above what was allocated before the call",
    "cpu": "highest resident size (VmHWM, reset before a call) above that before, least of three, in a forked process",
}
PATIENCE = 600  # seconds
REPEATS = 3  # calls of which the least peak counts
_CLEAR, _STATUS, _MAPS = (Path("/proc/self", name) for name in ("clear_refs", "status", "maps"))
_RESET_PEAK = "5"  # proc(5): /proc/pid/clear_refs
_M_MMAP_THRESHOLD, _LARGE = -3, 2**16  # mallopt(3)


def peak(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that `call` holds at its peak beyond what was there before, its result included; METHODS says how.

    `call` should have run before, so that what it allocates once is there. None where the system cannot tell.
    """
    if device.type == "cuda":
        return _peak_of_gpu(call, device)
    return _peak_of_fork(call) if _CLEAR.exists() else None


def _peak_of_gpu(call: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_of_fork(call: Callable[[], object]) -> int | None:
    """None where the call fails in the forked process, which has one thread only."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(PATIENCE)
            torch.set_num_threads(1)  # the others did not come along
            os.write(writing, str(_peak_of_process(call)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        found = answer.read()
    os.waitpid(child, 0)
    return int(found) if found else None


def _peak_of_process(call: Callable[[], object]) -> int:
    """Counts every allocation, those of compiled code outside torch's allocator included."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)  # malloc then gives every block back as soon as it is free
    call()
    peaks = []
    for _ in range(REPEATS):
        _fill_holes(libc)
        libc.malloc_trim(0)  # else the call could use free pages that are resident already
        _CLEAR.write_text(_RESET_PEAK)
        before = _resident("VmRSS")
        call()
        peaks.append(max(0, _resident("VmHWM") - before))
    return min(peaks)  # pages that the system had taken away come back in a call, which only ever adds


def _fill_holes(libc: ctypes.CDLL) -> None:
    """Take what is free inside malloc's heap, in large blocks that nobody touches.

    Else a tensor could lie there, whose pages stay resident after it, and the next one be mapped beside them. No block
    is larger than the heap: where malloc fails it moves this thread to the heap of another, and to the holes there.
    """
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_size_t
    libc.free.argtypes = [ctypes.c_size_t]
    begin, end = _heap()
    size = end - begin
    while size >= _LARGE:
        block = libc.malloc(size)
        if not begin < block < end:  # none, or mapped: no hole is as large
            libc.free(block)
            size //= 2


def _heap() -> tuple[int, int]:
    """Where the heap of the first thread lies."""
    parts = re.findall(r"^(\w+)-(\w+) .*\[heap\]$", _MAPS.read_text(), re.MULTILINE)
    return (int(parts[0][0], 16), int(parts[-1][1], 16)) if parts else (0, 0)


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert found, f"{_STATUS} has no {field}"
    return 1024 * int(found[1])
