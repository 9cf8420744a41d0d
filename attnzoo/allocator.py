"""The memory allocator of the process."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # mallopt(3)
_DEFAULT_MMAP_MAX = 65536
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep freed memory for the next tensors, up to 2 GiB at the end of its heap.

    By default it returns blocks of 32 MiB or more to the system when they are freed, so that every large tensor is
    written to fresh pages with a page fault each: time per token then grows with the number of tokens. Memory of
    large freed tensors may stay in the process. True if the setting was made, on Linux with glibc.
    """
    return _set({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _LARGEST})


def allow_mapped_blocks() -> bool:
    """Undo what `keep_freed_memory` sets for large blocks, for a process that measures them."""
    return _set({_M_MMAP_MAX: _DEFAULT_MMAP_MAX})


def _set(options: dict[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(mallopt(option, value) == 1 for option, value in options.items())
