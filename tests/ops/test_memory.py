"""What the kernels of multi-scale deformable attention on the CPU hold beside their results."""

import json
import subprocess
import sys
from typing import Any

SIDE, HEADS, HEAD_DIM = 128, 8, 32
MAP = 4 * HEAD_DIM * (SIDE + 2) ** 2  # bytes of a head with the border around it
SLACK = 2**20
MEASURE = """
import json
import re
import sys
from pathlib import Path
import torch
from attnzoo.ops import ms_deform_attn
from attnzoo.ops.ms_deform_attn.reference import ms_deform_attn as formula
def highest():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
def measure(function, side, heads, head_dim, queries, backward, transposed):
    value = torch.rand(1, side**2, heads, head_dim, requires_grad=backward)
    if transposed:
        value = torch.rand(1, heads, side**2, head_dim).transpose(1, 2).requires_grad_(backward)
    given = [value, *(torch.rand(1, queries, heads, 1, 4, *two, requires_grad=backward) for two in ((2,), ()))]
    slope = torch.ones(1, queries, heads * head_dim)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    before = highest()
    output = function(given[0], ((side, side),), *given[1:])
    results = [output, *(torch.autograd.grad(output, given, slope) if backward else ())]
    return highest() - before - sum(4 * tensor.numel() for tensor in results)
options = json.loads(sys.argv[1])
torch.set_num_threads(options.pop("threads"))
function = formula if options.pop("formula") else ms_deform_attn
measure(function, **options | {"side": 32})
print(measure(function, **options))
"""


def held(**options: Any) -> int:
    """Bytes beside results."""
    usual = {
        "side": SIDE,
        "heads": HEADS,
        "head_dim": HEAD_DIM,
        "queries": SIDE**2,
        "threads": 1,
        "backward": False,
        "transposed": False,
        "formula": False,
    }
    command = [sys.executable, "-c", MEASURE, json.dumps(usual | options)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_one_thread_holds_a_head_and_its_gradient() -> None:
    assert held(backward=True) < 2 * MAP + SLACK
    assert held(backward=True, formula=True) > 4 * HEADS * MAP


def test_backward_no_more_is_copied_than_heads() -> None:
    assert held(backward=True, threads=16) < 2 * HEADS * MAP + 2 * SLACK


def test_forward_all_threads_share_a_head() -> None:
    assert MAP / 2 < held(threads=8) < MAP + SLACK
    assert held(head_dim=30, queries=1) < MAP + SLACK


def test_of_few_queries_nothing_is_held_but_results() -> None:
    assert held(queries=300) < SLACK
    assert held(queries=300, backward=True, threads=8) < SLACK


def test_neither_an_only_head_nor_a_transposed_value_is_copied() -> None:
    assert held(heads=1, head_dim=256) < SLACK
    assert held(queries=300, transposed=True, backward=True) < SLACK


def test_without_queries_nothing_is_held() -> None:
    assert held(queries=0, head_dim=33) < SLACK
