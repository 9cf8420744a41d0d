"""Attention to sampled keys: oracle, reference, blocks and kernels agree, and masked keys are never read."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.deform_kv_attn import (
    FUNCTIONS,
    KINDS,
    REFERENCES,
    arguments,
    call_to_device,
    gradients,
    leaves,
    oracle,
    with_leaves,
)
from support.ops import DEVICES
from torch.testing import assert_close

from attnzoo.ops import library
from attnzoo.ops.deform_kv_attn import blocks


def test_kernels_are_compiled() -> None:
    assert library.load() is None
    for kind in ("", "_mlp"):
        for name in (f"deform_kv_attn{kind}", f"deform_kv_attn{kind}_backward"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"attnzoo::{name}", "CPU")


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_oracle(kind: str, padded: bool) -> None:
    call = arguments(kind, padded=padded)
    expected = oracle(call)
    assert_close(REFERENCES[kind](**call), expected, rtol=0, atol=1e-12)
    assert_close(FUNCTIONS[kind](**call), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("head_dim", [1, 5, 32, 71])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_the_reference(kind: str, head_dim: int, device: str) -> None:
    call = arguments(kind, head_dim=head_dim, queries=70, counts=(150, 67))  # several blocks and tiles, some partial
    for actual, expected in zip(
        gradients(FUNCTIONS[kind], call_to_device(device, call)), gradients(REFERENCES[kind], call), strict=True
    ):
        assert_close(actual.cpu(), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    batch=st.integers(1, 2),
    groups=st.integers(1, 2),
    queries=st.integers(1, 5),
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=2).map(tuple),
    head_dim=st.integers(1, 9),
    tables=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=2).map(tuple),
    per_image=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_sizes(device: str, kind: str, **sizes: Any) -> None:
    call = arguments(kind, **sizes)
    on_device = call_to_device(device, call)
    assert_close(FUNCTIONS[kind](**on_device).cpu(), oracle(call), rtol=0, atol=1e-12)
    for actual, expected in zip(gradients(FUNCTIONS[kind], on_device), gradients(REFERENCES[kind], call), strict=True):
        assert_close(actual.cpu(), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str, device: str) -> None:
    call = call_to_device(device, arguments(kind, batch=1, queries=3, counts=(3, 2), head_dim=3))
    tensors = [tensor.requires_grad_() for tensor in leaves(call)]
    torch.autograd.gradcheck(lambda *t: FUNCTIONS[kind](**with_leaves(call, list(t))), tensors, nondet_tol=1e-12)


def test_double_backward_of_the_reference() -> None:
    """For all inputs but positions: grid_sample has no second derivative."""
    call = arguments(batch=1, queries=2, counts=(2, 1), head_dim=2, heads=2)
    tensors = leaves(call)
    free = [t.requires_grad_() for t in (*tensors[:3], *tensors[5:])]
    torch.autograd.gradgradcheck(
        lambda *t: REFERENCES["table"](**with_leaves(call, [*t[:3], *tensors[3:5], *t[3:]])), free
    )


@pytest.mark.parametrize("kind", KINDS)
def test_queries_on_a_grid(kind: str) -> None:
    """Queries in rows of a map, one cell apart: the fast path of the kernels."""
    call = arguments(kind, queries=66, counts=(9,), tables=((11, 43), (1, 1)), padded=False)
    y, x = torch.meshgrid(torch.arange(3.0), torch.arange(22.0), indexing="ij")
    call["query_positions"] = torch.stack([x, y], -1).double().flatten(0, 1)[None, None]
    call["key_positions"] = call["key_positions"] * torch.tensor([6.0, 1.0]) + torch.tensor([11.0, 1.0])
    for actual, expected in zip(gradients(FUNCTIONS[kind], call), gradients(REFERENCES[kind], call), strict=True):
        assert_close(actual, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_agrees_with_float64(kind: str) -> None:
    call = arguments(kind, head_dim=32, queries=70, counts=(90, 40), dtype=torch.float32)
    doubled = with_leaves(call, [tensor.double() for tensor in leaves(call)])
    for actual, expected in zip(gradients(FUNCTIONS[kind], call), gradients(REFERENCES[kind], doubled), strict=True):
        assert actual.dtype == torch.float32
        assert_close(actual.double(), expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_softmax_is_precise_for_any_magnitude_of_scores(scale: float) -> None:
    call = arguments(dtype=torch.float32, head_dim=16, counts=(40,), queries=33, padded=False)
    doubled = with_leaves(call, [tensor.double() for tensor in leaves(call)])
    expected = REFERENCES["table"](**doubled, scale=scale)
    assert expected.isfinite().all()
    assert_close(FUNCTIONS["table"](**call, scale=scale).double(), expected, rtol=0, atol=2e-6 * max(1.0, 10 * scale))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_computes_in_float32(kind: str, dtype: torch.dtype, device: str) -> None:
    call = call_to_device(device, arguments(kind, dtype=torch.float32))
    half = [tensor.to(dtype) for tensor in leaves(call)[:3]]
    mixed = with_leaves(call, [*half, *leaves(call)[3:]])
    exact = with_leaves(call, [*(tensor.float() for tensor in half), *leaves(call)[3:]])
    output, *grads = gradients(FUNCTIONS[kind], mixed)
    assert [g.dtype for g in grads] == [dtype] * 3 + [torch.float32] * (len(grads) - 3)
    assert torch.equal(output, FUNCTIONS[kind](**exact).to(dtype))
    assert FUNCTIONS[kind](**with_leaves(call, [t.to(dtype) for t in leaves(call)])).dtype == dtype


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_casts_to_the_autocast_dtype(kind: str, device: str) -> None:
    call = call_to_device(device, arguments(kind, dtype=torch.float32))
    with torch.autocast(device, torch.bfloat16):
        assert FUNCTIONS[kind](**call).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_masked_keys_are_never_read(kind: str) -> None:
    call = arguments(kind)
    expected = gradients(FUNCTIONS[kind], call)
    corrupted = {name: call[name].clone() for name in ("key", "value", "key_positions")}
    masked = call["key_padding"]
    assert masked.any(1).all()
    for tensor in corrupted.values():
        tensor.transpose(1, 2)[masked] = math.nan
    for actual, clean in zip(gradients(FUNCTIONS[kind], {**call, **corrupted}), expected, strict=True):
        assert_close(actual, clean, rtol=0, atol=0)


@pytest.mark.parametrize("function", ["operator", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_fully_masked_queries_give_zero(kind: str, function: str) -> None:
    call = arguments(kind)
    call["key_padding"][1] = True
    output, *grads = gradients((FUNCTIONS if function == "operator" else REFERENCES)[kind], call)
    assert output[0].any()
    assert not output[1].any()
    assert all(grad.isfinite().all() for grad in grads)
    assert not any(grad[1].any() for grad in grads[:5])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e19])
@pytest.mark.parametrize("axis", [0, 1])
def test_nonfinite_positions_are_outside_the_table(bad: float, axis: int) -> None:
    for dtype in (torch.float32, torch.float64):
        call = arguments(dtype=dtype, padded=False)
        corrupted, far = (call["key_positions"].clone() for _ in range(2))
        corrupted[:, :, ::2, axis] = bad
        far[:, :, ::2, axis] = 1e4
        expected = REFERENCES["table"](**{**call, "key_positions": far})
        for function in (FUNCTIONS["table"], REFERENCES["table"]):
            output, *grads = gradients(function, {**call, "key_positions": corrupted})
            assert_close(output, expected)
            assert all(grad.isfinite().all() for grad in grads)
            assert not grads[4][:, :, ::2].any()
            assert grads[4][:, :, 1::2].any()


@pytest.mark.parametrize(
    ("batch", "queries", "counts"), [(0, 5, (3, 2)), (2, 0, (3, 2)), (2, 5, (0, 0)), (2, 5, (0, 4))]
)
@pytest.mark.parametrize("kind", KINDS)
def test_empty(kind: str, batch: int, queries: int, counts: tuple[int, ...]) -> None:
    call = arguments(kind, batch=batch, queries=queries, counts=counts, padded=False)
    output, *grads = gradients(FUNCTIONS[kind], call)
    assert output.shape == (batch, 4, queries, 5)
    assert bool(output.any()) == (batch * queries * sum(counts) > 0)
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in leaves(call)]


@pytest.mark.parametrize("kind", KINDS)
def test_strided_and_expanded_arguments(kind: str) -> None:
    call = arguments(kind, padded=False)
    expected = gradients(FUNCTIONS[kind], call)
    query, key, value, query_positions, key_positions, *bias = leaves(call)
    strided = [
        query.transpose(1, 2).contiguous().transpose(1, 2),
        key.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([value, value], -1)[..., :5],
        query_positions.flip(0).flip(0),
        key_positions.transpose(1, 2).contiguous().transpose(1, 2),
        *bias,
    ]
    assert not any(tensor.is_contiguous() for tensor in (*strided[:3], strided[4]))
    assert torch.equal(FUNCTIONS[kind](**with_leaves(call, strided)), expected[0])
    output = FUNCTIONS[kind](**call)
    assert output.transpose(1, 2).is_contiguous()
    tensors = [tensor.clone().requires_grad_() for tensor in leaves(call)]
    FUNCTIONS[kind](**with_leaves(call, tensors)).sum().backward()  # the gradient of the output is an expanded scalar
    reference_tensors = [tensor.clone().requires_grad_() for tensor in leaves(call)]
    REFERENCES[kind](**with_leaves(call, reference_tensors)).sum().backward()
    for actual, right in zip(tensors, reference_tensors, strict=True):
        assert_close(actual.grad, right.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_agree_with_the_reference(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fallback without a kernel, in several blocks of queries."""
    monkeypatch.setattr(blocks, "MAX_BLOCK_ELEMENTS", 200)
    call = arguments(kind)
    tensors, scale = leaves(call), call["query"].shape[-1] ** -0.5
    bias: blocks.Bias = blocks.MlpBias(tensors[5:], 2)
    if kind == "table":
        bias = blocks.TableBias(torch.cat([table.flatten(1) for table in tensors[5:]], 1), [(5, 7), (1, 3)])
    inputs = blocks.Inputs(*tensors[:5], call["key_counts"], call["key_padding"], scale)
    assert len(list(blocks._query_blocks(inputs, bias))) > 1
    output, logsumexp = blocks.forward(inputs, bias)
    grad_output = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    grad_inputs = blocks.backward(inputs, bias, grad_output, output, logsumexp)
    grad_bias = bias.gradients
    if kind == "table":
        grad_bias = [g.view_as(t) for g, t in zip(bias.gradients.split([35, 3], 1), tensors[5:], strict=True)]
    for actual, expected in zip((output, *grad_inputs, *grad_bias), gradients(REFERENCES[kind], call), strict=True):
        assert_close(actual, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_bit_identical_for_any_number_of_threads(kind: str, dtype: torch.dtype) -> None:
    call = arguments(kind, queries=150, counts=(100, 30), head_dim=16, dtype=dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients(FUNCTIONS[kind], call))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
