"""Settings of glibc's malloc for training on the CPU."""

import os
import sys

VARIABLE = "GLIBC_TUNABLES"
MIB = 2**20
TUNABLES = {
    # Freed memory stays in the process. By default glibc returns it to the system and gets fresh pages for the next
    # map, each with a page fault: up to 2000 per step of a small detector.
    "glibc.malloc.mmap_threshold": 32 * MIB,
    "glibc.malloc.trim_threshold": 1024 * MIB,
    # huge pages, where the system leaves that choice to the process
    "glibc.malloc.hugetlb": 1,
}


def restart_with_tunables() -> None:
    """Execute this process anew with TUNABLES, which glibc reads at its start, unless the environment has others.

    The process id, its open files and blocked signals stay. Call it first: what was imported is imported again.
    """
    if sys.platform == "linux" and VARIABLE not in os.environ:
        os.environ[VARIABLE] = ":".join(f"{name}={value}" for name, value in TUNABLES.items())
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
