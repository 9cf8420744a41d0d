"""Under autocast values are half precision, coordinates and weights float32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.deform_kv_attn import FUNCTIONS, KINDS, call_to_device, leaves, with_leaves
from support.deform_kv_attn import arguments as deform_kv_attn_arguments
from support.ops import DEVICES, arguments, fused_arguments, to_device
from torch import Tensor

from attnzoo import ops

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
FORMS: dict[str, tuple[Callable[..., Tensor], Callable[..., Any]]] = {
    "plain": (ops.ms_deform_attn, arguments),
    "fused": (ops.ms_deform_attn_fused, lambda **sizes: fused_arguments(True, **sizes)),
}


def raw(form: str) -> Callable[..., Tensor]:
    """The registered operator with the signature of the public function."""
    operator = getattr(torch.ops.attnzoo, "ms_deform_attn" if form == "plain" else "ms_deform_attn_fused")
    return lambda value, shapes, *others: operator(value, [size for shape in shapes for size in shape], *others)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_only_values_are_cast(form: str, registered: bool, device: str) -> None:
    function, make = FORMS[form]
    value, shapes, *others = to_device(device, make(dtype=F32))
    with torch.autocast(device, BF16):
        output = (raw(form) if registered else function)(value, shapes, *others)
    assert output.dtype == BF16
    assert torch.equal(output, function(value.to(BF16), shapes, *others))
    rounded = function(value.to(BF16), shapes, *(t.to(BF16).float() for t in others))
    assert not torch.equal(output, rounded)  # rounded coordinates would sample elsewhere


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("others_dtype", [BF16, F16])
@pytest.mark.parametrize("value_dtype", [F32, BF16, F16])
@pytest.mark.parametrize("form", FORMS)
def test_any_mix_of_dtypes_is_supported(
    form: str, value_dtype: torch.dtype, others_dtype: torch.dtype, registered: bool, device: str
) -> None:
    function, make = FORMS[form]
    value, shapes, *others = to_device(device, make(dtype=F32))
    call = raw(form) if registered else function
    with torch.autocast(device, BF16):
        output = call(value.to(value_dtype), shapes, others[0], *(t.to(others_dtype) for t in others[1:]))
    rounded = [others[0], *(t.to(others_dtype).float() for t in others[1:])]
    expected = function(value.to(value_dtype).to(BF16), shapes, *rounded)
    assert torch.equal(output, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS)
def test_gradients_have_the_dtypes_of_their_arguments(form: str, device: str) -> None:
    function, make = FORMS[form]
    value, shapes, *others = to_device(device, make(dtype=F32))
    leaves = [t.requires_grad_() for t in (value, *others)]
    with torch.autocast(device, BF16):
        output = function(leaves[0], shapes, *leaves[1:])
    gradients = torch.autograd.grad(output.float().square().sum(), leaves)
    half = function(leaves[0].to(BF16), shapes, *leaves[1:])
    for actual, expected in zip(gradients, torch.autograd.grad(half.float().square().sum(), leaves), strict=True):
        assert actual.dtype == F32
        if device == "cpu":
            assert torch.equal(actual, expected)
        else:  # the order of atomic additions varies
            torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS)
def test_double_precision_is_not_cast(form: str, device: str) -> None:
    function, make = FORMS[form]
    args = to_device(device, make(dtype=F64))
    with torch.autocast(device, BF16):
        output = function(*args)
    assert output.dtype == F64
    assert torch.equal(output, function(*args))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", FORMS)
def test_compiled_equals_eager(form: str, device: str) -> None:
    function, make = FORMS[form]
    value, shapes, *others = to_device(device, make(dtype=F32))

    def call(value: Tensor, *others: Tensor) -> Tensor:
        with torch.autocast(device, BF16):
            return function(value, shapes, *others)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(value, *others), call(value, *others))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_deform_kv_attn_computes_in_float32(kind: str, device: str) -> None:
    call = call_to_device(device, deform_kv_attn_arguments(kind, dtype=F32))
    with torch.autocast(device, BF16):
        output = FUNCTIONS[kind](**call)
    half = with_leaves(call, [t.to(BF16) if i < 3 else t for i, t in enumerate(leaves(call))])
    assert output.dtype == BF16
    assert torch.equal(output, FUNCTIONS[kind](**half))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_registered_deform_kv_attn_supports_any_mix_of_dtypes(kind: str, device: str) -> None:
    call = call_to_device(device, deform_kv_attn_arguments(kind, dtype=F32, counts=(6,), padded=False))
    tokens, (query_positions, key_positions, *bias) = leaves(call)[:3], leaves(call)[3:]
    rounded = [t.to(BF16) for t in tokens]
    last = (torch.cat([t.flatten(1) for t in bias], 1), [5, 7]) if kind == "table" else (bias,)
    operator = torch.ops.attnzoo.deform_kv_attn if kind == "table" else torch.ops.attnzoo.deform_kv_attn_mlp
    with torch.autocast(device, BF16):
        output, _ = operator(*rounded, query_positions, key_positions, *last, [6], None, 0.4)
    exact = with_leaves(call, [*(t.float() for t in rounded), *leaves(call)[3:]])
    assert output.dtype == (BF16 if (kind, device) == ("table", "cuda") else F32)  # that kernel reads and writes halves
    assert torch.equal(output, FUNCTIONS[kind](**exact, scale=0.4).to(output.dtype))
