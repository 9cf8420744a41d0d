"""What the CUDA kernels of attention to displaced keys compute: on a GPU, or compiled for the CPU."""

import math
from typing import Any

import pytest
import torch
from support.deform_kv import arguments
from support.emulation import CudaOperators
from torch import Tensor

F32, F64 = torch.float32, torch.float64
TOLERANCE = {F32: 1e-5, F64: 1e-14}  # on the scale of the largest number; roundings of places in the table included


def registered(call: dict[str, Any], scale: float | None = None) -> tuple[Any, ...]:
    """The arguments of the registered operator for a call of the Python face."""
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


def moved(given: tuple[Any, ...], to: str | torch.dtype) -> tuple[Any, ...]:
    """Tensors to a device, or those of numbers to a type."""

    def move(x: Any) -> Any:
        keeps = not isinstance(x, Tensor) or (isinstance(to, torch.dtype) and not x.is_floating_point())
        return x if keeps else x.to(to)

    return tuple(move(x) for x in given)


def slope_of(output: Tensor) -> Tensor:
    """A gradient that weighs all outputs differently."""
    return torch.linspace(-1, 1, output.numel(), dtype=F64).view_as(output).to(output)


def run(ops: Any, given: tuple[Any, ...], slope: Tensor | None = None) -> tuple[Tensor, ...]:
    """Output, logarithms of sums, and gradients by query, key, value, both positions and tables."""
    output, log_sums = ops.deform_kv_attn(*given)
    slope = slope_of(output) if slope is None else slope.to(output)
    return output, log_sums, *ops.deform_kv_attn_backward(slope, *given, output, log_sums)


def on_device(kernels: CudaOperators, given: tuple[Any, ...], slope: Tensor | None = None) -> tuple[Tensor, ...]:
    return tuple(t.cpu() for t in run(kernels.ops, moved(given, kernels.device), slope))


def check(kernels: CudaOperators, given: tuple[Any, ...]) -> None:
    """Beside the CPU kernels in float64, which are tested against an oracle."""
    expected = run(torch.ops.attnzoo, moved(given, F64))
    got = on_device(kernels, given)
    tolerance = TOLERANCE[given[0].dtype]
    for number, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.dtype == given[0].dtype
        assert a.shape == b.shape
        # A row without a key has an infinite logarithm.
        assert torch.equal(a.isfinite(), b.isfinite())
        finite = b.nan_to_num(posinf=0)
        error = (a.double().nan_to_num(posinf=0) - finite).abs().max().item() if b.numel() else 0.0
        assert error <= tolerance * max(1.0, finite.abs().max().item() if b.numel() else 0.0), (number, error)


@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    [*((dim, dtype) for dim in (1, 5, 32, 33, 64) for dtype in (F32, F64)), (65, F32), (100, F32), (128, F32)],
)
def test_agrees_with_the_kernels_of_the_cpu(cuda_operators, head_dim, dtype):
    # more than a block of queries, and tiles of keys that are not all full
    check(cuda_operators, registered(arguments(head_dim=head_dim, queries=133, counts=(35, 18), dtype=dtype)))


@pytest.mark.parametrize(
    "sizes",
    [
        {"queries": 1, "counts": (1,), "heads": 1, "groups": 1, "batch": 1},
        {"queries": 65, "counts": (0, 17), "heads": 3, "groups": 3},
        {"queries": 64, "counts": (16, 0), "heads": 6, "groups": 2},
        {"queries": 128, "counts": (7, 9, 8), "tables": ((1, 1), (2, 9), (5, 1)), "per_image": False},
        {"queries": 40, "counts": (50,), "tables": ((3, 90),), "padded": False},
        {"queries": 1300, "counts": (5,), "batch": 1},  # several blocks share the queries of a key
    ],
)
def test_no_size_needs_to_divide_another(cuda_operators, sizes):
    check(cuda_operators, registered(arguments(**{"head_dim": 32, "dtype": F32, **sizes})))


@pytest.mark.parametrize("columns", [32, 29])
def test_queries_in_the_rows_of_a_map(cuda_operators, columns):
    """As a warp has them: side by side in the table, within it, over its edges and beyond, and in two rows."""
    call = arguments(queries=3 * columns, counts=(9,), tables=((7, 61),), padded=False, head_dim=32, dtype=F32)
    y, x = torch.meshgrid(torch.arange(3.0), torch.arange(float(columns)), indexing="ij")
    call["query_positions"] = torch.stack([x, y], -1).flatten(0, 1)[None, None]
    call["key_positions"] = call["key_positions"] * torch.tensor([9.0, 1.0]) + torch.tensor([15.0, 1.0])
    check(cuda_operators, registered(call))


def test_always_the_same_to_the_bit(cuda_operators):
    given = registered(arguments(queries=700, counts=(9, 4), tables=((2, 3), (1, 2)), head_dim=32, dtype=F32))
    runs = []
    for seed in range(3):
        cuda_operators.reorder(seed)
        runs.append(on_device(cuda_operators, given))
    assert runs[0][-1].any()
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("magnitude", [1e-30, 1e-12, 1e12, 1e30])
def test_gradients_of_tables_keep_their_precision_at_any_size(cuda_operators, magnitude):
    given = registered(arguments(queries=90, counts=(20, 5), head_dim=8, dtype=F32))
    slope = slope_of(given[0])
    plain = on_device(cuda_operators, given, slope)[-1]
    scaled = on_device(cuda_operators, given, slope * magnitude)[-1]
    torch.testing.assert_close(scaled / magnitude, plain, rtol=1e-5, atol=1e-5)


def test_one_large_gradient_costs_the_others_no_precision(cuda_operators):
    """What one query adds to cells of its own says nothing about the others', which are a million times smaller."""
    call = arguments(batch=1, heads=1, groups=1, queries=90, counts=(5,), tables=((3, 401),), head_dim=8, padded=False,
                     dtype=F32)  # fmt: skip
    call["query_positions"][..., 0] = torch.linspace(-150, -20, 90)  # cells of the left half
    call["query_positions"][0, 0, 7, 0] = 150.0
    given = registered(call)
    slope = slope_of(given[0])
    slope[0, 0, 7] *= 1e6
    got = on_device(cuda_operators, given, slope)[-1].view(3, 401)[:, :200]
    expected = run(torch.ops.attnzoo, moved(given, F64), slope)[-1].view(3, 401)[:, :200]
    assert expected.abs().max() < 10
    assert (got - expected).abs().max() <= 5e-5 * expected.abs().max()  # places are rounded to 2e-5 of a cell


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_are_not_hidden(cuda_operators, bad):
    given = registered(arguments(queries=9, counts=(20,), tables=((9, 9),), head_dim=8, dtype=F32, padded=False))
    slope = slope_of(given[0])
    slope[0, 1, 4, 2] = bad
    by_tables = on_device(cuda_operators, given, slope)[-1]
    assert by_tables[1].isnan().all()  # of that head
    assert by_tables[[0, 2, 3]].isfinite().all()
    spoilt = (given[0].clone(), *given[1:])
    spoilt[0][0, 2, 3, 1] = bad  # a query: products and weights of its head are spoilt, the output's gradient is not
    by_tables = on_device(cuda_operators, spoilt, slope_of(given[0]))[-1]
    assert by_tables[2].isnan().all()
    assert by_tables[[0, 1, 3]].isfinite().all()


def test_hidden_keys_are_never_read(cuda_operators):
    given = registered(arguments(queries=70, counts=(30, 9), head_dim=32, dtype=F32))
    hidden = given[8]
    assert hidden.any()
    spoilt = list(given)
    for index in (1, 2, 4):
        spoilt[index] = given[index].masked_fill(hidden[:, None, :, None], math.nan)
    for a, b in zip(on_device(cuda_operators, tuple(spoilt)), on_device(cuda_operators, given), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_hidden_keys_have_no_gradient_whatever_the_queries_hold(cuda_operators, bad):
    given = registered(arguments(queries=70, counts=(30, 9), head_dim=32, dtype=F32))
    given[0][:, :, 3] = bad
    slope = slope_of(given[0])
    slope[:, :, 5] = bad
    _, _, _, by_key, by_value, _, by_key_positions, _ = on_device(cuda_operators, given, slope)
    hidden = given[8][:, None, :, None]
    for gradient in (by_key, by_value, by_key_positions):
        assert not gradient.masked_select(hidden).any()
        assert not gradient.masked_select(~hidden).isfinite().all()


def test_queries_without_a_key(cuda_operators):
    given = list(registered(arguments(queries=5, counts=(6, 3), head_dim=8, dtype=F32)))
    given[8] = torch.tensor([[True] * 9, [False] * 9])
    output, log_sums, *gradients = on_device(cuda_operators, tuple(given))
    assert not output[0].any()
    assert (log_sums[0] == math.inf).all()
    assert all(g.isfinite().all() for g in gradients)
    assert not any(g[0].any() for g in gradients[:5])
    assert output[1].any()
    assert all(g[1].any() for g in gradients[:5])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38, -1e19])
def test_displacements_that_are_no_places_have_no_bias(cuda_operators, bad):
    given = list(registered(arguments(queries=40, counts=(20,), tables=((9, 9),), head_dim=8, dtype=F32, padded=False)))
    keys = given[4].clone()
    keys[:, :, ::2, 0] = bad
    far = given[4].clone()
    far[:, :, ::2, 0] = 1000.0
    got = on_device(cuda_operators, (*given[:4], keys, *given[5:]))
    expected = on_device(cuda_operators, (*given[:4], far, *given[5:]))
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    assert not got[6][:, :, ::2].any()  # by the keys' positions


@pytest.mark.parametrize(("scale", "error"), [(3.0, 1e-4), (300.0, 5e-3)])
def test_large_scores(cuda_operators, scale, error):
    """Scores of some 3,000 are known to 2e-4 in float32, and so are weights; gradients grow with the scale."""
    given = registered(arguments(queries=33, counts=(40,), head_dim=16, dtype=F32, padded=False), scale=scale)
    expected = run(torch.ops.attnzoo, moved(given, F64))
    for number, (a, b) in enumerate(zip(on_device(cuda_operators, given), expected, strict=True)):
        assert (a - b).abs().max() <= error * max(1.0, b.abs().max().item()), number


def test_strided_and_expanded_arguments(cuda_operators):
    given = registered(arguments(queries=70, counts=(20, 9), head_dim=8, dtype=F32))
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in given[:3]]
    strided[0] = strided[0].mT.contiguous().mT
    slope = torch.ones(1).expand(given[0].shape)
    got = on_device(cuda_operators, (*strided, *given[3:]), slope)
    for a, b in zip(got, on_device(cuda_operators, given, slope.contiguous()), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"queries": 0}, {"counts": (0, 0)}])
def test_empty(cuda_operators, sizes):
    check(cuda_operators, registered(arguments(head_dim=8, dtype=F32, **sizes)))


def test_what_the_kernels_do_not_take(cuda_operators):
    def forward(given: tuple[Any, ...]) -> None:
        cuda_operators.ops.deform_kv_attn(*moved(given, cuda_operators.device))

    with pytest.raises(RuntimeError, match="at most 128 channels per head"):
        forward(registered(arguments(head_dim=129, dtype=F32)))
    with pytest.raises(RuntimeError, match="64 in float64; got 65"):
        forward(registered(arguments(head_dim=65)))
    with pytest.raises(RuntimeError, match="float32 or float64"):
        forward(moved(registered(arguments()), torch.float16))
    levels = 65
    with pytest.raises(RuntimeError, match="at most 64 levels"):
        forward(registered(arguments(counts=(1,) * levels, tables=((1, 1),) * levels)))
    given = registered(arguments())
    with pytest.raises(RuntimeError, match="the tensors differ in size"):
        forward((given[0][:, :2], *given[1:]))


def on_gpu() -> tuple[tuple[Any, ...], Tensor]:
    given = moved(registered(arguments(queries=300, counts=(90, 30), head_dim=32, dtype=F32)), "cuda")
    return given, slope_of(given[0])


@pytest.mark.cuda
def test_work_goes_to_the_current_stream():
    given, slope = on_gpu()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        given[2].mul_(2)  # late on this stream: who does not wait for it computes with the old values
        got = run(torch.ops.attnzoo, given, slope)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, run(torch.ops.attnzoo, given, slope), strict=True))


@pytest.mark.cuda
def test_captured_in_a_graph():
    given, slope = on_gpu()
    run(torch.ops.attnzoo, given, slope)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(torch.ops.attnzoo, given, slope)
    for factor in (1.0, -0.5):
        given[2].mul_(factor)
        graph.replay()
        torch.cuda.synchronize()
        expected = run(torch.ops.attnzoo, given, slope)
        assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.cuda
def test_nothing_waits_for_the_gpu():
    given, slope = on_gpu()
    run(torch.ops.attnzoo, given, slope)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(torch.ops.attnzoo, given, slope)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_runs_on_the_device_of_its_tensors():
    if torch.cuda.device_count() < 2:
        pytest.skip("NOT TESTED HERE: needs two GPUs")
    given, slope = on_gpu()
    expected = run(torch.ops.attnzoo, given, slope)
    got = run(torch.ops.attnzoo, moved(given, "cuda:1"), slope.to("cuda:1"))
    assert torch.cuda.current_device() == 0
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(got, expected, strict=True))


@pytest.mark.cuda
def test_more_than_2_to_the_31_elements():
    # 2³¹ elements lie before the last image's, so that 32 bits would lead somewhere else.
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
    slope = torch.zeros_like(large[0])
    slope[-1] = slope_of(small[0])[0]
    got = run(torch.ops.attnzoo, large, slope)
    expected = run(torch.ops.attnzoo, small, slope[-1:])
    for number in (0, 1, 2):
        assert torch.equal(got[number][-1:], expected[number])
    assert not got[2][:-1].any()
    torch.testing.assert_close(got[7], expected[7])


@pytest.mark.cuda
def test_scores_and_biases_are_never_held():
    # Stage 1 of DAT-T++ at 800 x 1333: one head's scores alone are 267 MiB.
    call = arguments(batch=1, heads=2, groups=1, queries=200 * 334, counts=(1050,), head_dim=32, dtype=F32,
                     tables=((399, 667),), padded=False)  # fmt: skip
    given = moved(registered(call), "cuda")
    slope = slope_of(given[0])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run(torch.ops.attnzoo, given, slope)
    assert torch.cuda.max_memory_allocated() - before < 120 * 2**20
