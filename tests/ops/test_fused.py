"""The fused operator: results, checks, PyTorch support, and its use by the attention."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.ops import DEVICES, Fused, fused_arguments, fused_reference
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from attnzoo import ops
from attnzoo.attention import build, record
from attnzoo.geometry import Layout, Pyramid, Queries, Slot
from attnzoo.ops.ms_deform_attn import reference

BOXES = pytest.mark.parametrize("box", [False, True], ids=["points", "boxes"])


def flat(args: Fused) -> list[Any]:
    """Arguments of the registered operator."""
    return [args.value, [size for shape in args.shapes for size in shape], *args[2:]]


def results(function: Callable[..., Tensor], args: Fused) -> list[Tensor]:
    """Output and all gradients, for an output gradient with distinct values."""
    leaves = Fused(*(t.clone().requires_grad_() if isinstance(t, Tensor) else t for t in args))
    output = function(leaves)
    grad_output = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
    return [output.detach(), *torch.autograd.grad(output, [t for t in leaves if isinstance(t, Tensor)], grad_output)]


def fused(args: Fused) -> Tensor:
    return ops.ms_deform_attn_fused(*args)


@BOXES
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("points", [1, 3, 4])
@pytest.mark.parametrize("head_dim", [1, 5, 8, 32])
def test_agrees_with_the_unfused_operator(head_dim, points, device, box):
    args = fused_arguments(box, head_dim=head_dim, points=points)
    for got, expected in zip(results(fused, args.on(device)), results(fused_reference, args), strict=True):
        assert_close(got.cpu(), expected, rtol=1e-10, atol=1e-11)


@BOXES
def test_reference_agrees_with_the_unfused_reference(box):
    args = fused_arguments(box)
    output, *gradients = results(fused_reference, args)
    assert_close(reference.ms_deform_attn_fused(*args), output)
    grad_output = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    for got, expected in zip(reference.ms_deform_attn_fused_backward(grad_output, *args), gradients, strict=True):
        assert_close(got, expected)


@BOXES
def test_gradcheck(box):
    value, shapes, *others = fused_arguments(box, ((3, 4), (2, 1)), batch=1, queries=2, heads=2, head_dim=3, points=2)
    leaves = [t.requires_grad_() for t in (value, *others)]
    torch.autograd.gradcheck(lambda v, *rest: ops.ms_deform_attn_fused(v, shapes, *rest), leaves)


@BOXES
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("name", ["references", "offsets"])
def test_nonfinite_points_contribute_zero(name, bad, box):
    args = fused_arguments(box)
    corrupted = getattr(args, name).clone()
    corrupted[:, ::2, ..., 0] = bad
    args = args._replace(**{name: corrupted})
    locations = args.locations()
    weights = args.logits.flatten(-2).softmax(-1).view(args.logits.shape)
    expected = ops.ms_deform_attn(args.value, args.shapes, locations, weights)
    for function in (fused, lambda g: reference.ms_deform_attn_fused(*g)):
        assert_close(function(args), expected)
    grad_output = torch.ones_like(expected)
    for function in (torch.ops.attnzoo.ms_deform_attn_fused_backward, reference.ms_deform_attn_fused_backward):
        compiled = function is not reference.ms_deform_attn_fused_backward
        actual = function(grad_output, *flat(args), True) if compiled else function(grad_output, *args)
        _, grad_references, grad_offsets, grad_logits = actual
        assert all(t.isfinite().all() for t in actual)
        assert not grad_offsets[:, ::2].any()
        assert not grad_references[:, ::2].any()
        assert not grad_logits[:, ::2].any()  # all samples are zero, whatever their weights
        assert grad_offsets[:, 1::2].any()
        assert grad_references[:, 1::2].any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("name", "component"), [("references", 0), ("references", 2), ("offsets", 1)])
def test_reference_and_kernels_have_the_same_gradients_for_nonfinite_boxes(name, component, bad):
    args = fused_arguments(True)
    corrupted = getattr(args, name).clone()
    corrupted[:, ::2, ..., component] = bad
    args = args._replace(**{name: corrupted})
    expected_results = results(lambda g: reference.ms_deform_attn_fused(*g), args)
    for got, expected in zip(results(fused, args), expected_results, strict=True):
        assert got.isfinite().all()
        assert_close(got, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("level", ["baseline", ""])
def test_extreme_logits(level, monkeypatch):
    monkeypatch.setenv("ATTNZOO_SIMD", level)
    args = fused_arguments(False, queries=8)
    logits = args.logits.clone()
    logits[:, 0] = 1e6  # the same large value for all
    logits[:, 1] *= 1e4
    logits[:, 2, :, 0] = -math.inf  # masked
    logits[:, 3] = -1e30
    logits[:, 4, :, 1, 1] = math.inf
    logits[:, 5, :, 1, 1] = math.nan
    logits[:, 6] = -math.inf
    args = args._replace(logits=logits)
    expected = fused_reference(args)
    assert expected[:, 4:7].isnan().all()
    assert not expected[:, [0, 1, 2, 3, 7]].isnan().any()
    assert_close(fused(args), expected, equal_nan=True)
    single = Fused(*(t.float() if isinstance(t, Tensor) else t for t in args))
    assert_close(fused(single), expected.float(), equal_nan=True)


@BOXES
@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0)])
def test_empty(batch, queries, box):
    args = fused_arguments(box, batch=batch, queries=queries)
    output, *gradients = results(fused, args)
    assert output.shape == (batch, queries, 24)
    assert [g.shape for g in gradients] == [t.shape for t in args if isinstance(t, Tensor)]
    assert not gradients[0].any()


@BOXES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, box):
    args = fused_arguments(box, dtype=torch.float32)
    args = args._replace(value=args.value.to(dtype))
    exact = args._replace(value=args.value.float())
    output, grad_value, *others = results(fused, args)
    assert torch.equal(output, fused(exact).to(dtype))
    assert grad_value.dtype == dtype
    assert {t.dtype for t in others} == {torch.float32}
    all_half = Fused(*(t.to(dtype) if isinstance(t, Tensor) else t for t in args))
    assert [t.dtype for t in results(fused, all_half)] == [dtype] * 5


@BOXES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype, box):
    args = fused_arguments(box, dtype=dtype)
    leaves = [t.requires_grad_() if isinstance(t, Tensor) else t for t in flat(args)]
    torch.library.opcheck(torch.ops.attnzoo.ms_deform_attn_fused.default, leaves)


@BOXES
def test_opcheck_backward(box):
    args = fused_arguments(box)
    grad_output = torch.ones(2, 6, 24, dtype=torch.float64)
    torch.library.opcheck(torch.ops.attnzoo.ms_deform_attn_fused_backward.default, (grad_output, *flat(args), True))


@BOXES
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic, device, box):
    for queries in (6, 9):
        args = fused_arguments(box, queries=queries, dtype=torch.float32).on(device)
        compiled = torch.compile(fused, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for a, b in zip(results(compiled, args), results(fused, args), strict=True):
            assert_close(a, b)


class Sampler(nn.Module):
    """The operator on one map of any size."""

    def forward(self, feature_map: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        h, w = feature_map.shape[-2:]
        value = feature_map.flatten(2).transpose(1, 2).unflatten(-1, (3, -1))
        return ops.ms_deform_attn_fused(value, ((h, w),), references, offsets, logits)


def sampler_inputs(box: bool, h: int, w: int, **sizes: int) -> tuple[Tensor, ...]:
    value, _, *others = fused_arguments(box, ((h, w),), dtype=torch.float32, **sizes)
    return value.flatten(2).transpose(1, 2).unflatten(-1, (h, w)), *others


@BOXES
@pytest.mark.parametrize("strict", [False, True])
def test_exports_with_any_sizes(strict, box):
    batch, queries, h, w = (torch.export.Dim(name, min=2, max=1000) for name in ("batch", "queries", "h", "w"))
    sizes = ({0: batch, 2: h, 3: w}, *({0: batch, 1: queries} for _ in range(3)))
    program = torch.export.export(Sampler(), sampler_inputs(box, 5, 7), dynamic_shapes=sizes, strict=strict)
    assert any("ms_deform_attn_fused" in str(node.target) for node in program.graph.nodes)
    plain = program.run_decompositions(ops.decompositions())
    assert not any("attnzoo" in str(node.target) for node in plain.graph.nodes)
    other = sampler_inputs(box, 9, 4, batch=3, queries=11)
    for exported in (program, plain):
        assert_close(exported.module()(*other), Sampler()(*other), rtol=1e-5, atol=5e-6)


def test_flops():
    args = fused_arguments(False)
    forward = 2 * 4 * args.logits.numel() * args.value.shape[-1]
    leaf = args.value.clone().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        output = fused(args._replace(value=leaf))
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2 * forward


def test_double_backward_raises():
    args = fused_arguments(False)
    leaves = [t.requires_grad_() for t in args if isinstance(t, Tensor)]
    (first,) = torch.autograd.grad(fused(args).square().sum(), leaves[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="does not support double backward"):
        first.sum().backward()


WRONG = [
    ("references", lambda x: x[..., :1], ValueError, "expected points (x, y) or boxes (cx, cy, w, h)"),
    ("references", lambda x: x[..., None], ValueError, "expected (B, Q, L, 2 or 4)"),
    ("references", lambda x: x[:1], ValueError, "B (axis 0) is 1, expected 2"),
    ("references", lambda x: x[:, :5], ValueError, "Q (axis 1) is 5, expected 6"),
    ("references", lambda x: x[:, :, :2], ValueError, "L (axis 2) is 2, expected 3"),
    ("references", lambda x: x.float(), TypeError, "is torch.float32, expected torch.float64"),
    ("references", lambda x: x.to_sparse(), TypeError, "expected a dense tensor, got layout torch.sparse_coo"),
    ("references", lambda x: x.to("meta"), ValueError, "is on meta, but value is on cpu"),
    ("offsets", lambda x: x[..., :1], ValueError, "(x, y) (axis 5) is 1, expected 2"),
    ("offsets", lambda x: x[:, :, :2], ValueError, "M (axis 2) is 2, expected 3"),
    ("logits", lambda x: x[..., :3], ValueError, "P (axis 4) is 3, expected 4"),
    ("logits", lambda x: x.float(), TypeError, "is torch.float32, expected torch.float64"),
    ("value", lambda x: x[:, 1:], ValueError, "S = 48 tokens, but spatial_shapes have 49"),
]


@pytest.mark.parametrize(("name", "change", "kind", "message"), WRONG, ids=[f"{w[0]}: {w[3]}" for w in WRONG])
def test_errors_name_the_argument(name, change, kind, message):
    args = fused_arguments(False)
    with pytest.raises(kind) as error:
        fused(args._replace(**{name: change(getattr(args, name))}))
    assert str(error.value).startswith(f"{name}: ")
    assert message in str(error.value)


def test_kernels_check_sizes():
    value, shapes, references, offsets, logits = flat(fused_arguments(False))
    for wrong in (references[..., :1], references[:, :5], references[0], references.float()):
        with pytest.raises(RuntimeError, match="references"):
            torch.ops.attnzoo.ms_deform_attn_fused(value, shapes, wrong, offsets, logits)


class RecordOperators(TorchDispatchMode):
    """Records the names of the attnzoo operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "attnzoo":
            self.names.append(func.__name__.removesuffix(".default"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("reference_size", [2, 4])
def test_attention_uses_the_fused_operator_unless_recording(reference_size):
    torch.manual_seed(0)
    attention = build("ms_deform", Slot(16, 4, 2))
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.3)
    torch.nn.init.normal_(attention.attention_weights.weight)
    masks = [torch.zeros(2, 4, 6, dtype=torch.bool), torch.zeros(2, 2, 3, dtype=torch.bool)]
    masks[0][1, :, 4:] = True
    masks[1][1, :, 2:] = True
    memory = Pyramid(torch.randn(2, 30, 16), Layout.from_masks(masks))
    queries = Queries(torch.randn(2, 5, 16), torch.rand(2, 5, reference_size))
    with RecordOperators() as called:
        output = attention(queries, memory)
        output.sum().backward()
    assert called.names == ["ms_deform_attn_fused", "ms_deform_attn_fused_backward"]
    with RecordOperators() as called, record(attention):
        assert_close(attention(queries, memory), output)
    assert called.names == ["ms_deform_attn"]
