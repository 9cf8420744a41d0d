"""What the kernels of multi-scale deformable attention on the CPU hold beside their results."""

import subprocess
import sys

SIDE, HEADS, HEAD_DIM = 128, 8, 32
MEASURE = f"""
import re
from pathlib import Path
import torch
from attnzoo import ops
from attnzoo.ops import reference
torch.set_num_threads(1)
def highest():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
def measure(function, side):
    tokens = side * side
    given = [torch.rand(1, tokens, {HEADS}, *size, requires_grad=True) for size in (({HEAD_DIM},), (1, 4, 2), (1, 4))]
    slope = torch.ones(1, tokens, {HEADS * HEAD_DIM})
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    before = highest()
    output = function(given[0], ((side, side),), *given[1:])
    results = [output, *torch.autograd.grad(output, given, slope)]
    print(highest() - before - sum(4 * tensor.numel() for tensor in results))
measure(ops.ms_deform_attn, 8)
measure(ops.ms_deform_attn, {SIDE})
measure(reference.ms_deform_attn, {SIDE})
"""


def test_one_thread_holds_the_map_of_a_head_and_its_gradient() -> None:
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    _, kernels, formula = (int(line) for line in run.stdout.split())
    bordered = 4 * HEAD_DIM * (SIDE + 2) ** 2
    assert kernels < 2 * bordered + 2**20
    assert formula > 4 * HEADS * bordered
