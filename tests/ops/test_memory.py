"""Workspace memory of the CPU kernels of multi-scale deformable attention."""

import json
import subprocess
import sys
from typing import Any

SIDE, HEADS, HEAD_DIM = 128, 8, 32
MAP = 4 * HEAD_DIM * (SIDE + 2) ** 2  # bytes of one head with its padding
SLACK = 2**20
HUGE_PAGE = 2**21  # results and copies in huge pages may fill the last one
MEASURE = """
import json
import re
import sys
from pathlib import Path
import torch
from attnzoo.ops import ms_deform_attn
from attnzoo.ops.ms_deform_attn.reference import ms_deform_attn as reference
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
def measure(function, side, heads, head_dim, queries, backward, transposed, shared):
    value = torch.rand(1, side**2, 1 if shared else heads, head_dim, requires_grad=backward)
    if transposed:
        value = torch.rand(1, heads, side**2, head_dim).transpose(1, 2).requires_grad_(backward)
    args = [value, *(torch.rand(1, queries, heads, 1, 4, *two, requires_grad=backward) for two in ((2,), ()))]
    grad_output = torch.ones(1, queries, heads * head_dim)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = peak()
    output = function(args[0], ((side, side),), *args[1:])
    results = [output, *(torch.autograd.grad(output, args, grad_output) if backward else ())]
    return peak() - before - sum(4 * tensor.numel() for tensor in results)
options = json.loads(sys.argv[1])
torch.set_num_threads(options.pop("threads"))
function = reference if options.pop("reference") else ms_deform_attn
measure(function, **options | {"side": 32})
print(measure(function, **options))
"""


def workspace(**options: Any) -> int:
    """Peak memory in bytes, without inputs and results."""
    defaults = {
        "side": SIDE,
        "heads": HEADS,
        "head_dim": HEAD_DIM,
        "queries": SIDE**2,
        "threads": 1,
        "backward": False,
        "transposed": False,
        "shared": False,
        "reference": False,
    }
    command = [sys.executable, "-c", MEASURE, json.dumps(defaults | options)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_one_thread_needs_one_head_and_its_gradient() -> None:
    assert workspace(backward=True) < 2 * MAP + SLACK + HUGE_PAGE
    assert workspace(backward=True, reference=True) > 4 * HEADS * MAP


def test_backward_copies_each_head_at_most_once() -> None:
    assert workspace(backward=True, threads=16) < 2 * HEADS * MAP + 2 * SLACK + 2 * HUGE_PAGE


def test_forward_threads_share_one_head() -> None:
    assert MAP / 2 < workspace(threads=8) < MAP + SLACK + HUGE_PAGE
    assert workspace(head_dim=30, queries=1) < MAP + SLACK


def test_few_queries_need_no_workspace() -> None:
    assert workspace(queries=300) < SLACK
    assert workspace(queries=300, backward=True, threads=8) < SLACK


def test_single_head_and_a_transposed_value_are_not_copied() -> None:
    assert workspace(heads=1, head_dim=256) < SLACK
    assert workspace(queries=300, transposed=True, backward=True) < SLACK


def test_a_shared_value_needs_no_copy_for_each_head() -> None:
    assert workspace(shared=True, queries=300, head_dim=256) < SLACK
    assert workspace(shared=True, queries=300, head_dim=256, backward=True, threads=8) < 2 * SLACK


def test_no_queries_need_no_workspace() -> None:
    assert workspace(queries=0, head_dim=33) < SLACK
