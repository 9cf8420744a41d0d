"""Results of the CUDA kernels of `deform_kv_attn`, on a GPU or compiled for the CPU."""

import math
from typing import Any

import pytest
import torch
from support.deform_kv_attn import arguments
from support.emulation import CudaOperators
from torch import Tensor

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
# Relative to the largest value; includes rounding of table positions. In half precision four roundings of a result.
TOLERANCE = {F16: 2**-9, BF16: 2**-6, F32: 1e-5, F64: 1e-14}


def registered(call: dict[str, Any], scale: float | None = None) -> tuple[Any, ...]:
    """The arguments of the registered operator for a call of the Python API."""
    tables = call["tables"]
    scale = call["query"].shape[-1] ** -0.5 if scale is None else scale
    return (
        *(call[name] for name in ("query", "key", "value")),
        call["query_positions"].expand(len(call["query"]), -1, -1, -1),
        call["key_positions"],
        torch.cat([table.flatten(1) for table in tables], 1),
        [size for table in tables for size in table.shape[1:]],
        call["key_counts"],
        call["key_padding"],
        scale,
    )


def moved(args: tuple[Any, ...], to: str | torch.dtype) -> tuple[Any, ...]:
    """Move tensors to a device, or floating-point tensors to a dtype."""

    def move(x: Any) -> Any:
        keeps = not isinstance(x, Tensor) or (isinstance(to, torch.dtype) and not x.is_floating_point())
        return x if keeps else x.to(to)

    return tuple(move(x) for x in args)


def in_half(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """Query, key and value in half precision, all else in float32."""
    return (*moved(args[:3], dtype), *args[3:])


def grad_for(output: Tensor) -> Tensor:
    """An output gradient with distinct values."""
    return torch.linspace(-1, 1, output.numel(), dtype=F64).view_as(output).to(output)


def run(ops: Any, args: tuple[Any, ...], grad_output: Tensor | None = None) -> tuple[Tensor, ...]:
    """Output, logsumexp, and gradients of query, key, value, both positions and tables."""
    output, logsumexp = ops.deform_kv_attn(*args)
    grad_output = grad_for(output) if grad_output is None else grad_output.to(output)
    return output, logsumexp, *ops.deform_kv_attn_backward(grad_output, *args, output, logsumexp)


def on_device(kernels: CudaOperators, args: tuple[Any, ...], grad_output: Tensor | None = None) -> tuple[Tensor, ...]:
    return tuple(t.cpu() for t in run(kernels.ops, moved(args, kernels.device), grad_output))


def check(kernels: CudaOperators, args: tuple[Any, ...]) -> None:
    """Compare with the CPU kernels in float64, which are tested against an oracle."""
    grad_output = grad_for(args[0])
    expected = run(torch.ops.attnzoo, moved(args, F64), grad_output)
    actual = on_device(kernels, args, grad_output)
    tolerance = TOLERANCE[args[0].dtype]
    for number, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.dtype == args[0 if number in (0, 2, 3, 4) else 3].dtype  # 0, 2, 3, 4: of output, query, key, value
        assert a.shape == b.shape
        # The logsumexp of a fully masked row is infinite.
        assert torch.equal(a.isfinite(), b.isfinite())
        finite = b.nan_to_num(posinf=0)
        error = (a.double().nan_to_num(posinf=0) - finite).abs().max().item() if b.numel() else 0.0
        assert error <= tolerance * max(1.0, finite.abs().max().item() if b.numel() else 0.0), (number, error)


@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    [*((dim, dtype) for dim in (1, 5, 32, 33, 64) for dtype in (F32, F64)), (65, F32), (100, F32), (128, F32)],
)
def test_agrees_with_the_cpu_kernels(cuda_operators, head_dim, dtype):
    # several blocks of queries, and partial tiles of keys
    check(cuda_operators, registered(arguments(head_dim=head_dim, queries=133, counts=(35, 18), dtype=dtype)))


@pytest.mark.parametrize(
    "sizes",
    [
        {"queries": 1, "counts": (1,), "heads": 1, "groups": 1, "batch": 1},
        {"queries": 65, "counts": (0, 17), "heads": 3, "groups": 3},
        {"queries": 64, "counts": (16, 0), "heads": 6, "groups": 2},
        {"queries": 128, "counts": (7, 9, 8), "tables": ((1, 1), (2, 9), (5, 1)), "per_image": False},
        {"queries": 40, "counts": (50,), "tables": ((3, 90),), "padded": False},
        {"queries": 1300, "counts": (5,), "batch": 1},  # the queries of a key are split over blocks
    ],
)
def test_sizes_need_not_be_divisible(cuda_operators, sizes):
    check(cuda_operators, registered(arguments(**{"head_dim": 32, "dtype": F32, **sizes})))


HALF_SIZES = [
    {"head_dim": 32, "queries": 133, "counts": (35, 18)},
    {"head_dim": 6, "queries": 70, "counts": (20, 9), "tables": ((3, 11), (6, 2))},  # not in vectors
    {"head_dim": 61, "queries": 65, "counts": (17,), "tables": ((4, 9),)},
    {"head_dim": 104, "queries": 65, "counts": (17,), "padded": False},
    {"head_dim": 8, "queries": 0},
    {"head_dim": 8, "counts": (0, 0)},
]


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("sizes", HALF_SIZES)
def test_half_precision(cuda_operators, sizes, dtype):
    check(cuda_operators, in_half(registered(arguments(dtype=F32, **sizes)), dtype))


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_half_precision_is_the_result_in_float32_rounded(cuda_operators, dtype):
    """Computation and sums are in float32: the forward pass rounds once, the backward pass also its input `output`."""
    args = in_half(registered(arguments(queries=700, counts=(35, 18), head_dim=32, dtype=F32)), dtype)
    wide, grad_output = moved(args, F32), grad_for(args[0])
    ops, device = cuda_operators.ops, cuda_operators.device
    args, wide, (grad_output,) = moved(args, device), moved(wide, device), moved((grad_output,), device)
    output, logsumexp = ops.deform_kv_attn(*args)
    wide_output, wide_logsumexp = ops.deform_kv_attn(*wide)
    assert torch.equal(output, wide_output.to(dtype))
    assert torch.equal(logsumexp, wide_logsumexp)
    gradients = ops.deform_kv_attn_backward(grad_output, *args, output, logsumexp)
    expected = ops.deform_kv_attn_backward(grad_output.float(), *wide, output.float(), logsumexp)
    for a, b in zip(gradients, expected, strict=True):
        assert torch.equal(a, b.to(a.dtype))
    assert [g.dtype for g in gradients] == [dtype] * 3 + [F32] * 3


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("head_dim", [8, 7])
def test_half_precision_rows_may_be_strided(cuda_operators, head_dim, dtype):
    """As heads of a projection, also from an address that is no multiple of a vector."""
    args = in_half(registered(arguments(queries=70, counts=(20, 9), head_dim=head_dim, dtype=F32)), dtype)
    expected = on_device(cuda_operators, args)
    for offset in (0, 1, 4):
        strided = []
        for tensor in args[:3]:
            batch, heads, rows, _ = tensor.shape
            storage = torch.full((batch, rows, heads * 2 * head_dim + offset), torch.nan, dtype=dtype)
            rows_of_heads = storage[..., offset:].unflatten(-1, (heads, 2 * head_dim))[..., :head_dim].transpose(1, 2)
            rows_of_heads.copy_(tensor)
            strided.append(rows_of_heads)
        for a, b in zip(on_device(cuda_operators, (*strided, *args[3:])), expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("columns", [32, 29])
def test_queries_on_a_grid(cuda_operators, columns):
    """Adjacent table positions within a warp: inside the table, across its border, outside, and over two rows."""
    call = arguments(queries=3 * columns, counts=(9,), tables=((7, 61),), padded=False, head_dim=32, dtype=F32)
    y, x = torch.meshgrid(torch.arange(3.0), torch.arange(float(columns)), indexing="ij")
    call["query_positions"] = torch.stack([x, y], -1).flatten(0, 1)[None, None]
    call["key_positions"] = call["key_positions"] * torch.tensor([9.0, 1.0]) + torch.tensor([15.0, 1.0])
    check(cuda_operators, registered(call))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_positions_at_cells_and_borders(cuda_operators, dtype):
    """Displacements at whole cells, a rounding away from them, and around the borders of the table."""
    call = arguments(queries=65, counts=(3,), tables=((6, 9),), padded=False, head_dim=8, dtype=dtype)
    at = torch.arange(-8, 8.5, dtype=dtype).repeat_interleave(4)[:65]  # the centre is at column 4 and row 2.5
    at[1::4] = at[1::4].nextafter(torch.tensor(math.inf, dtype=dtype))
    at[2::4] = at[2::4].nextafter(torch.tensor(-math.inf, dtype=dtype))
    at[3::4] += 0.5
    call["query_positions"] = torch.stack([at, at.flip(0) - 0.5], -1)[None, None].contiguous()
    call["key_positions"] = call["key_positions"] * 0 + torch.tensor([[0.0, 0.0], [0.0, 2.0], [-3.0, 0.0]], dtype=dtype)
    args = registered(call)
    actual, expected = on_device(cuda_operators, args), run(torch.ops.attnzoo, moved(args, F64))
    for number in (0, 1, 2, 3, 4, 7):  # derivatives by positions jump there
        error = (actual[number] - expected[number]).abs().max().item()
        assert error <= TOLERANCE[dtype] * max(1.0, expected[number].abs().max().item()), number


def test_deterministic(cuda_operators):
    args = registered(arguments(queries=700, counts=(9, 4), tables=((2, 3), (1, 2)), head_dim=32, dtype=F32))
    runs = []
    for seed in range(3):
        cuda_operators.shuffle(seed)
        runs.append(on_device(cuda_operators, args))
    assert runs[0][-1].any()
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("magnitude", [1e-30, 1e-12, 1e12, 1e30])
def test_table_gradients_are_precise_at_any_magnitude(cuda_operators, magnitude):
    args = registered(arguments(queries=90, counts=(20, 5), head_dim=8, dtype=F32))
    grad_output = grad_for(args[0])
    plain = on_device(cuda_operators, args, grad_output)[-1]
    scaled = on_device(cuda_operators, args, grad_output * magnitude)[-1]
    torch.testing.assert_close(scaled / magnitude, plain, rtol=1e-5, atol=1e-5)


def test_one_large_gradient_does_not_reduce_the_precision_of_others(cuda_operators):
    """One query adds to its own cells gradients a million times larger than those of other cells."""
    call = arguments(batch=1, heads=1, groups=1, queries=90, counts=(5,), tables=((3, 401),), head_dim=8, padded=False,
                     dtype=F32)  # fmt: skip
    call["query_positions"][..., 0] = torch.linspace(-150, -20, 90)  # cells of the left half
    call["query_positions"][0, 0, 7, 0] = 150.0
    args = registered(call)
    grad_output = grad_for(args[0])
    grad_output[0, 0, 7] *= 1e6
    actual = on_device(cuda_operators, args, grad_output)[-1].view(3, 401)[:, :200]
    expected = run(torch.ops.attnzoo, moved(args, F64), grad_output)[-1].view(3, 401)[:, :200]
    assert expected.abs().max() < 10
    assert (actual - expected).abs().max() <= 5e-5 * expected.abs().max()  # positions are rounded to 2e-5 of a cell


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_gradients_propagate(cuda_operators, bad):
    args = registered(arguments(queries=9, counts=(20,), tables=((9, 9),), head_dim=8, dtype=F32, padded=False))
    grad_output = grad_for(args[0])
    grad_output[0, 1, 4, 2] = bad
    grad_tables = on_device(cuda_operators, args, grad_output)[-1]
    assert grad_tables[1].isnan().all()  # of that head
    assert grad_tables[[0, 2, 3]].isfinite().all()
    corrupted = (args[0].clone(), *args[1:])
    corrupted[0][0, 2, 3, 1] = bad  # a query: scores and weights of its head are NaN, the gradient of the output is not
    grad_tables = on_device(cuda_operators, corrupted, grad_for(args[0]))[-1]
    assert grad_tables[2].isnan().all()
    assert grad_tables[[0, 1, 3]].isfinite().all()


def test_masked_keys_are_never_read(cuda_operators):
    args = registered(arguments(queries=70, counts=(30, 9), head_dim=32, dtype=F32))
    masked = args[8]
    assert masked.any()
    corrupted = list(args)
    for index in (1, 2, 4):
        corrupted[index] = args[index].masked_fill(masked[:, None, :, None], math.nan)
    for a, b in zip(on_device(cuda_operators, tuple(corrupted)), on_device(cuda_operators, args), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_masked_keys_have_zero_gradients_for_nonfinite_queries(cuda_operators, bad):
    args = registered(arguments(queries=70, counts=(30, 9), head_dim=32, dtype=F32))
    args[0][:, :, 3] = bad
    grad_output = grad_for(args[0])
    grad_output[:, :, 5] = bad
    _, _, _, grad_key, grad_value, _, grad_key_positions, _ = on_device(cuda_operators, args, grad_output)
    masked = args[8][:, None, :, None]
    for gradient in (grad_key, grad_value, grad_key_positions):
        assert not gradient.masked_select(masked).any()
        assert not gradient.masked_select(~masked).isfinite().all()


def test_fully_masked_queries(cuda_operators):
    args = list(registered(arguments(queries=5, counts=(6, 3), head_dim=8, dtype=F32)))
    args[8] = torch.tensor([[True] * 9, [False] * 9])
    output, logsumexp, *gradients = on_device(cuda_operators, tuple(args))
    assert not output[0].any()
    assert (logsumexp[0] == math.inf).all()
    assert all(g.isfinite().all() for g in gradients)
    assert not any(g[0].any() for g in gradients[:5])
    assert output[1].any()
    assert all(g[1].any() for g in gradients[:5])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38, -1e19])
def test_nonfinite_displacements_have_zero_bias(cuda_operators, bad):
    args = list(registered(arguments(queries=40, counts=(20,), tables=((9, 9),), head_dim=8, dtype=F32, padded=False)))
    keys = args[4].clone()
    keys[:, :, ::2, 0] = bad
    far = args[4].clone()
    far[:, :, ::2, 0] = 1000.0
    actual = on_device(cuda_operators, (*args[:4], keys, *args[5:]))
    expected = on_device(cuda_operators, (*args[:4], far, *args[5:]))
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)
    assert not actual[6][:, :, ::2].any()  # gradient of the key positions


@pytest.mark.parametrize(("scale", "error"), [(3.0, 1e-4), (300.0, 5e-3)])
def test_large_scores(cuda_operators, scale, error):
    """Scores of about 3,000 are accurate to 2e-4 in float32, and so are weights; gradients grow with the scale."""
    args = registered(arguments(queries=33, counts=(40,), head_dim=16, dtype=F32, padded=False), scale=scale)
    expected = run(torch.ops.attnzoo, moved(args, F64))
    for number, (a, b) in enumerate(zip(on_device(cuda_operators, args), expected, strict=True)):
        assert (a - b).abs().max() <= error * max(1.0, b.abs().max().item()), number


def test_strided_and_expanded_arguments(cuda_operators):
    args = registered(arguments(queries=70, counts=(20, 9), head_dim=8, dtype=F32))
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in args[:3]]
    strided[0] = strided[0].mT.contiguous().mT
    grad_output = torch.ones(1).expand(args[0].shape)
    actual = on_device(cuda_operators, (*strided, *args[3:]), grad_output)
    for a, b in zip(actual, on_device(cuda_operators, args, grad_output.contiguous()), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"queries": 0}, {"counts": (0, 0)}])
def test_empty(cuda_operators, sizes):
    check(cuda_operators, registered(arguments(head_dim=8, dtype=F32, **sizes)))


def test_unsupported_sizes_and_dtypes(cuda_operators):
    def forward(args: tuple[Any, ...]) -> None:
        cuda_operators.ops.deform_kv_attn(*moved(args, cuda_operators.device))

    with pytest.raises(RuntimeError, match="at most 128 channels per head"):
        forward(registered(arguments(head_dim=129, dtype=F32)))
    with pytest.raises(RuntimeError, match="64 in float64; got 65"):
        forward(registered(arguments(head_dim=65)))
    with pytest.raises(RuntimeError, match="at most 128 channels per head"):
        forward(in_half(registered(arguments(head_dim=129, dtype=F32)), F16))
    with pytest.raises(RuntimeError, match="positions must have the dtype of query, or float32"):
        forward(moved(registered(arguments()), F16))
    single = registered(arguments(dtype=F32))
    with pytest.raises(RuntimeError, match="query, key and value differ in dtype"):
        forward((single[0].half(), *single[1:]))
    with pytest.raises(RuntimeError, match="tables differ in dtype"):
        forward((*single[:5], single[5].half(), *single[6:]))
    with pytest.raises(RuntimeError, match="less than 2\\*\\*22 rows and columns"):
        forward(registered(arguments(heads=1, groups=1, counts=(1,), tables=((1, 2**22),), dtype=F32)))
    levels = 65
    with pytest.raises(RuntimeError, match="at most 64 levels"):
        forward(registered(arguments(counts=(1,) * levels, tables=((1, 1),) * levels)))
    args = registered(arguments())
    with pytest.raises(RuntimeError, match="the tensors differ in size"):
        forward((args[0][:, :2], *args[1:]))


def test_backward_checks_dtypes(cuda_operators):
    args = in_half(registered(arguments(dtype=F32)), F16)
    args, logsumexp = moved(args, cuda_operators.device), torch.zeros(2, 4, 7, device=cuda_operators.device)
    backward, half = cuda_operators.ops.deform_kv_attn_backward, torch.zeros_like(args[0])
    for grad_output, output in ((half.float(), half), (half, half.float()), (half.bfloat16(), half)):
        with pytest.raises(RuntimeError, match="grad_output and output do not match the queries"):
            backward(grad_output, *args, output, logsumexp)
    with pytest.raises(RuntimeError, match="logsumexp does not match the queries"):
        backward(half, *args, half, logsumexp.half())


def on_gpu() -> tuple[tuple[Any, ...], Tensor]:
    args = moved(registered(arguments(queries=300, counts=(90, 30), head_dim=32, dtype=F32)), "cuda")
    return args, grad_for(args[0])


@pytest.mark.cuda
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


@pytest.mark.cuda
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


@pytest.mark.cuda
def test_no_device_synchronisation():
    args, grad_output = on_gpu()
    run(torch.ops.attnzoo, args, grad_output)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(torch.ops.attnzoo, args, grad_output)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_runs_on_the_device_of_its_tensors():
    if torch.cuda.device_count() < 2:
        pytest.skip("NOT TESTED HERE: needs two GPUs")
    args, grad_output = on_gpu()
    expected = run(torch.ops.attnzoo, args, grad_output)
    actual = run(torch.ops.attnzoo, moved(args, "cuda:1"), grad_output.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(actual, expected, strict=True))


@pytest.mark.cuda
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


@pytest.mark.cuda
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


@pytest.mark.cuda
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
