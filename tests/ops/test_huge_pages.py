"""Large results use transparent huge pages where available."""

import os
import re
from pathlib import Path

import pytest
import torch

from attnzoo import ops

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def flags(address: int) -> list[str]:
    """The flags of the memory mapping that contains an address (proc(5), VmFlags)."""
    in_mapping = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            in_mapping = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif in_mapping and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"no mapping contains {address:#x}")


def test_results_of_32_mib_use_huge_pages() -> None:
    if not THP.exists() or os.environ.get("THP_MEM_ALLOC_ENABLE") == "1":
        pytest.skip("NOT TESTED HERE: needs Linux with transparent huge pages, and torch not using them itself")
    queries = 40_000
    value = torch.ones(1, 4, 8, 32)
    locations = torch.full((1, queries, 8, 1, 1, 2), 0.5)
    output = ops.ms_deform_attn(value, ((2, 2),), locations, torch.ones(1, queries, 8, 1, 1))
    assert output.numel() * output.element_size() >= 2**25
    assert "hg" in flags(output.data_ptr() + 2**23)
    assert (output == 1).all()
