"""The CUDA operators on a GPU: streams, graphs, devices, memory, large tensors, registration."""

from collections.abc import Callable

import pytest
import torch
from support.ops import Fused, arguments, fused_arguments, fused_reference
from torch import Tensor

from attnzoo.ops.ms_deform_attn import reference

pytestmark = pytest.mark.cuda

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
Call = Callable[[], tuple[Tensor, ...]]


def flat(shapes: tuple[tuple[int, int], ...]) -> list[int]:
    return [size for shape in shapes for size in shape]


def fused_call(args: Fused, grad: Tensor, deterministic: bool) -> Call:
    """Forward and backward of the fused operator, on tensors that are changed in place between calls."""
    value, shapes, *others = args

    def call() -> tuple[Tensor, ...]:
        output = torch.ops.attnzoo.ms_deform_attn_fused(value, flat(shapes), *others)
        grads = torch.ops.attnzoo.ms_deform_attn_fused_backward(grad, value, flat(shapes), *others, deterministic)
        return output, *grads

    return call


def plain_call(args: Fused, grad: Tensor, deterministic: bool) -> Call:
    value, shapes, _, _, logits = args
    locations = args.locations().contiguous()
    weights = logits.flatten(-2).softmax(-1).view(logits.shape)

    def call() -> tuple[Tensor, ...]:
        output = torch.ops.attnzoo.ms_deform_attn(value, flat(shapes), locations, weights)
        grads = torch.ops.attnzoo.ms_deform_attn_backward(grad, value, flat(shapes), locations, weights, deterministic)
        return output, *grads

    return call


CALLS = pytest.mark.parametrize("make", [plain_call, fused_call])
DTYPES = pytest.mark.parametrize("dtype", [F16, BF16, F32])
WAYS = pytest.mark.parametrize("deterministic", [False, True])


def args_on_gpu(dtype: torch.dtype) -> tuple[Fused, Tensor]:
    args = fused_arguments(False, head_dim=32, queries=200, dtype=dtype).on("cuda")
    generator = torch.Generator().manual_seed(1)
    return args, torch.randn(2, 200, 96, generator=generator).to("cuda", dtype)


def assert_all_close(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    # The order of atomic additions varies.
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2 if a.dtype in (F16, BF16) else 1e-4, atol=1e-4)


@CALLS
@WAYS
def test_runs_on_the_current_stream(make, deterministic):
    args, grad = args_on_gpu(F32)
    call = make(args, grad, deterministic)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        args.value.mul_(2)  # late on this stream: kernels on another stream would see the old value
        actual = call()
    stream.synchronize()
    assert_all_close(actual, call())


@CALLS
@DTYPES
@WAYS
def test_cuda_graph_capture(make, dtype, deterministic):
    args, grad = args_on_gpu(dtype)
    call = make(args, grad, deterministic)
    call()  # warm-up: nothing may be loaded within the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for factor in (1.0, -0.5):
        args.value.mul_(factor)
        graph.replay()
        torch.cuda.synchronize()
        assert_all_close(captured, call())


@CALLS
@WAYS
def test_no_device_synchronisation(make, deterministic):
    call = make(*args_on_gpu(F32), deterministic)
    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@CALLS
@WAYS
def test_runs_on_the_device_of_its_tensors(make, deterministic):
    if torch.cuda.device_count() < 2:
        pytest.skip("NOT TESTED HERE: needs two GPUs")
    args, grad = args_on_gpu(F32)
    expected = make(args, grad, deterministic)()
    assert torch.cuda.current_device() == 0
    actual = make(args.on("cuda:1"), grad.to("cuda:1"), deterministic)()
    assert torch.cuda.current_device() == 0
    assert_all_close(tuple(t.to("cuda:0") for t in actual), expected)


def test_tensors_on_different_devices_raise():
    value, shapes, locations, weights = arguments(dtype=F32)
    with pytest.raises(RuntimeError, match="must be on the device of value"):
        torch.ops.attnzoo.ms_deform_attn(value.cuda(), flat(shapes), locations, weights.cuda())


def extra_memory(call: Call) -> int:
    """Peak memory of a call in bytes, without inputs and results."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    returned = call()
    torch.cuda.synchronize()
    assert returned
    return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()


@CALLS
@DTYPES
def test_no_memory_beyond_the_results(make, dtype):
    args, grad = args_on_gpu(dtype)
    sums = 0 if dtype == F32 else args.value.numel() * 4  # half-precision gradients are accumulated in float32
    slack = 2048  # allocations are rounded up
    assert extra_memory(make(args, grad, False)) <= sums + slack


@pytest.mark.parametrize("deterministic", [False, True])
def test_more_than_2_to_the_31_elements(deterministic):
    # The last image starts after 2³¹ elements, so 32-bit offsets would overflow.
    shapes, heads, head_dim, batch = ((1024, 1024),), 8, 64, 5
    tokens = shapes[0][0] * shapes[0][1]
    elements = batch * tokens * heads * head_dim
    assert elements > 2**31
    needed = elements * (2 + 2 + 4) + 2**30  # value, gradient, sums
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"NOT TESTED HERE: needs {needed / 2**30:.0f} GiB of GPU memory")
    _, _, locations, weights = arguments(shapes, batch=1, queries=50, heads=heads, head_dim=1, dtype=F32, device="cuda")
    image = torch.randn(1, tokens, heads, head_dim, device="cuda", dtype=F16)
    value = torch.zeros(batch, tokens, heads, head_dim, device="cuda", dtype=F16)
    value[-1:] = image
    everywhere = [t.expand(batch, *t.shape[1:]).contiguous() for t in (locations, weights)]
    output = torch.ops.attnzoo.ms_deform_attn(value, flat(shapes), *everywhere)
    expected = torch.ops.attnzoo.ms_deform_attn(image, flat(shapes), locations, weights)
    assert not output[:-1].any()
    assert torch.equal(output[-1:], expected)
    grad = torch.zeros_like(output)
    grad[-1] = 1
    actual = torch.ops.attnzoo.ms_deform_attn_backward(grad, value, flat(shapes), *everywhere, deterministic)
    expected_grads = torch.ops.attnzoo.ms_deform_attn_backward(grad[-1:], image, flat(shapes), locations, weights, True)
    assert not actual[0][:-1].any()
    torch.testing.assert_close(actual[0][-1:], expected_grads[0])
    torch.testing.assert_close(actual[1][-1:], expected_grads[1])


def test_encoder_sizes_agree_with_the_reference():
    # 17,821 = 71 · 251 queries: not divisible by block sizes.
    shapes = ((100, 134), (50, 67), (25, 34), (13, 17))
    tokens = sum(h * w for h, w in shapes)
    assert tokens == 17_821
    args = fused_arguments(False, shapes, batch=1, queries=tokens, heads=8, head_dim=32, dtype=F32)
    output = torch.ops.attnzoo.ms_deform_attn_fused(*_flattened(args.on("cuda")))
    torch.testing.assert_close(output.cpu().double(), fused_reference(args.double()), rtol=0, atol=1e-5)


def _flattened(args: Fused) -> tuple:
    value, shapes, *others = args
    return value, flat(shapes), *others


@pytest.mark.parametrize("dtype", [F16, F32, torch.float64])
def test_opcheck(dtype):
    args = fused_arguments(True, dtype=dtype).on("cuda")
    grad = torch.ones(2, 6, 24, device="cuda", dtype=dtype)
    value, shapes, *others = _flattened(args)
    locations = args.locations().contiguous()
    weights = args.logits.softmax(-1)
    for deterministic in (False, True):
        torch.library.opcheck(
            torch.ops.attnzoo.ms_deform_attn_backward.default,
            (grad, value, shapes, locations, weights, deterministic),
            # The order of atomic additions varies.
            atol=1e-2,
            rtol=1e-2,
        )
        torch.library.opcheck(
            torch.ops.attnzoo.ms_deform_attn_fused_backward.default,
            (grad, value, shapes, *others, deterministic),
            atol=1e-2,
            rtol=1e-2,
        )
    torch.library.opcheck(torch.ops.attnzoo.ms_deform_attn.default, (value, shapes, locations, weights))
    torch.library.opcheck(torch.ops.attnzoo.ms_deform_attn_fused.default, (value, shapes, *others))


@pytest.mark.parametrize("box", [False, True])
def test_fused_gradients_agree_with_finite_differences(box):
    args = fused_arguments(box, ((3, 4), (2, 1)), batch=1, queries=2, heads=2, head_dim=4, points=2).on("cuda")
    value, shapes, *others = _flattened(args)
    leaves = [t.contiguous() for t in (value, *others)]
    grad = torch.linspace(-1, 1, 16, device="cuda", dtype=torch.float64).view(1, 2, 8)

    def loss() -> Tensor:
        return (torch.ops.attnzoo.ms_deform_attn_fused(leaves[0], shapes, *leaves[1:]) * grad).sum()

    actual = torch.ops.attnzoo.ms_deform_attn_fused_backward(grad, leaves[0], shapes, *leaves[1:], True)
    step = 1e-6
    for leaf, grad_leaf in zip(leaves, actual, strict=True):
        entries = leaf.view(-1)
        for index in range(0, entries.numel(), max(1, entries.numel() // 7)):
            before = entries[index].item()
            entries[index] = before + step
            above = loss()
            entries[index] = before - step
            below = loss()
            entries[index] = before
            torch.testing.assert_close((above - below) / (2 * step), grad_leaf.view(-1)[index], rtol=1e-5, atol=1e-7)


def test_half_precision_agrees_with_the_reference():
    for dtype in (F16, BF16):
        value, shapes, locations, weights = arguments(dtype=F32, head_dim=32)
        half = value.to(dtype)
        output = torch.ops.attnzoo.ms_deform_attn(half.cuda(), flat(shapes), locations.cuda(), weights.cuda())
        expected = reference.ms_deform_attn(half.float(), shapes, locations, weights)
        torch.testing.assert_close(output.cpu().float(), expected, rtol=2**-8, atol=2**-8)
