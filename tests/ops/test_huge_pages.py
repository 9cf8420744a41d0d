"""Large results lie on huge pages where the system has them."""

import os
import re
from pathlib import Path

import pytest
import torch

from attnzoo import ops

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def flags(address: int) -> list[str]:
    """What the system notes of the mapping that holds an address (proc(5), VmFlags)."""
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            here = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif here and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"no mapping holds {address:#x}")


def test_of_32_mib_and_more() -> None:
    if not THP.exists() or os.environ.get("THP_MEM_ALLOC_ENABLE") == "1":
        pytest.skip("NOT TESTED HERE: needs a Linux with transparent huge pages, which torch itself does not ask for")
    queries = 40_000
    value = torch.ones(1, 4, 8, 32)
    locations = torch.full((1, queries, 8, 1, 1, 2), 0.5)
    output = ops.ms_deform_attn(value, ((2, 2),), locations, torch.ones(1, queries, 8, 1, 1))
    assert output.numel() * output.element_size() >= 2**25
    assert "hg" in flags(output.data_ptr() + 2**23)
    assert (output == 1).all()
