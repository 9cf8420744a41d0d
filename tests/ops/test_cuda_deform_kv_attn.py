"""Results of the CUDA kernels of `deform_kv_attn`, on a GPU or compiled for the CPU."""

import math
from typing import Any

import pytest
import torch
from support.cuda_deform_kv_attn import grad_for, in_half, moved, registered, run
from support.deform_kv_attn import arguments
from support.emulation import CudaOperators
from torch import Tensor

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
# Relative to the largest value; includes rounding of table positions. In half precision four roundings of a result.
TOLERANCE = {F16: 2**-9, BF16: 2**-6, F32: 1e-5, F64: 1e-14}


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
