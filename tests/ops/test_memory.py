"""What the kernels of multi-scale deformable attention on the CPU hold beside their results."""

import subprocess
import sys

SIDE, HEADS, HEAD_DIM = 128, 8, 32
BORDERED = 4 * HEAD_DIM * (SIDE + 2) ** 2  # bytes of a head's map
MEASURE = f"""
import re
import sys
from pathlib import Path
import torch
from attnzoo import ops
from attnzoo.ops import reference
torch.set_num_threads(int(sys.argv[1]))
def highest():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
def measure(function, side, backward):
    tokens = side * side
    given = [torch.rand(1, tokens, {HEADS}, *size, requires_grad=backward) for size in (({HEAD_DIM},), (1, 4, 2), (1, 4))]
    slope = torch.ones(1, tokens, {HEADS * HEAD_DIM})
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    before = highest()
    output = function(given[0], ((side, side),), *given[1:])
    results = [output, *(torch.autograd.grad(output, given, slope) if backward else ())]
    return highest() - before - sum(4 * tensor.numel() for tensor in results)
function = getattr(sys.modules["attnzoo." + sys.argv[2]], "ms_deform_attn")
backward = sys.argv[3] == "backward"
measure(function, 32, backward)
print(measure(function, {SIDE}, backward))
"""


def held(threads: int, function: str, passes: str) -> int:
    """Bytes beside results."""
    command = [sys.executable, "-c", MEASURE, str(threads), function, passes]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_one_thread_holds_the_map_of_a_head_and_its_gradient() -> None:
    assert held(1, "ops", "backward") < 2 * BORDERED + 2**20
    assert held(1, "ops.reference", "backward") > 4 * HEADS * BORDERED


def test_forward_all_threads_share_the_map_of_a_head() -> None:
    assert held(8, "ops", "forward") < BORDERED + 2**20
