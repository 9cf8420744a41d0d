"""The CUDA operators of `deform_kv_attn` on a GPU: streams, graphs, devices, memory, large tensors."""

from typing import Any

import pytest
import torch
from support.cuda_deform_kv_attn import grad_for, in_half, moved, registered, run
from support.deform_kv_attn import arguments
from torch import Tensor

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32

pytestmark = pytest.mark.cuda


def on_gpu() -> tuple[tuple[Any, ...], Tensor]:
    args = moved(registered(arguments(queries=300, counts=(90, 30), head_dim=32, dtype=F32)), "cuda")
    return args, grad_for(args[0])


def test_runs_on_the_current_stream():
    args, grad_output = on_gpu()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        args[2].mul_(2)  # late on this stream: kernels on another stream would see the old values
        actual = run(torch.ops.attnzoo, args, grad_output)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(actual, run(torch.ops.attnzoo, args, grad_output), strict=True))


def test_cuda_graph_capture():
    args, grad_output = on_gpu()
    run(torch.ops.attnzoo, args, grad_output)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(torch.ops.attnzoo, args, grad_output)
    for factor in (1.0, -0.5):
        args[2].mul_(factor)
        graph.replay()
        torch.cuda.synchronize()
        expected = run(torch.ops.attnzoo, args, grad_output)
        assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_no_device_synchronisation():
    args, grad_output = on_gpu()
    run(torch.ops.attnzoo, args, grad_output)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(torch.ops.attnzoo, args, grad_output)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_runs_on_the_device_of_its_tensors():
    if torch.cuda.device_count() < 2:
        pytest.skip("NOT TESTED HERE: needs two GPUs")
    args, grad_output = on_gpu()
    expected = run(torch.ops.attnzoo, args, grad_output)
    actual = run(torch.ops.attnzoo, moved(args, "cuda:1"), grad_output.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(actual, expected, strict=True))


def test_more_than_2_to_the_31_elements():
    # The last image starts after 2³¹ elements, so 32-bit offsets would overflow.
    batch, queries = 9, 2**20 + 1
    call = arguments(batch=1, heads=8, groups=2, queries=queries, counts=(3,), head_dim=32, padded=False, dtype=F32)
    small = moved(registered(call), "cuda")
    elements = batch * 8 * queries * 32
    assert elements > 2**31
    needed = elements * 4 * 6
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"NOT TESTED HERE: needs {needed / 2**30:.0f} GiB of GPU memory")
    large = tuple(
        t.expand(batch, *t.shape[1:]).contiguous() if isinstance(t, Tensor) and index != 5 else t
        for index, t in enumerate(small)
    )
    grad_output = torch.zeros_like(large[0])
    grad_output[-1] = grad_for(small[0])[0]
    actual = run(torch.ops.attnzoo, large, grad_output)
    expected = run(torch.ops.attnzoo, small, grad_output[-1:])
    for number in (0, 1, 2):
        assert torch.equal(actual[number][-1:], expected[number])
    assert not actual[2][:-1].any()
    torch.testing.assert_close(actual[7], expected[7])


def test_scores_and_biases_are_never_materialised():
    # Stage 1 of DAT-T++ at 800 x 1333: one head's scores alone are 267 MiB.
    call = arguments(batch=1, heads=2, groups=1, queries=200 * 334, counts=(1050,), head_dim=32, dtype=F32,
                     tables=((399, 667),), padded=False)  # fmt: skip
    args = moved(registered(call), "cuda")
    grad_output = grad_for(args[0])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run(torch.ops.attnzoo, args, grad_output)
    assert torch.cuda.max_memory_allocated() - before < 120 * 2**20


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_half_precision_is_not_widened_in_memory(dtype):
    call = arguments(batch=1, heads=8, groups=1, queries=80_000, counts=(60,), head_dim=32, dtype=F32,
                     tables=((9, 9),), padded=False)  # fmt: skip
    args = moved(in_half(registered(call), dtype), "cuda")
    grad_output = grad_for(args[0])
    tokens = 2 * args[0].numel()  # bytes of the output, and of the gradient of the queries
    run(torch.ops.attnzoo, args, grad_output)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run(torch.ops.attnzoo, args, grad_output)
    # In float32, 4 numbers per query and head: logsumexp, delta, and parts of the gradients of the query positions;
    # the size of 8 channels of 32. Parts of the gradients of the keys take at most 2048 · 8 rows of 66 numbers.
    parts = 2048 * 8 * 66 * 4
    assert torch.cuda.max_memory_allocated() - before < 2 * tokens + tokens / 4 + parts + 2**20
