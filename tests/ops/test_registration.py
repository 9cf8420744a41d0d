"""PyTorch support of `ms_deform_attn`: schema, fake and autograd rules, compiler, export, FLOP counter."""

import pytest
import torch
import torch._dynamo.testing
from support.ops import DEVICES, arguments
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attnzoo import ops


def flat(shapes: tuple[tuple[int, int], ...]) -> list[int]:
    return [size for shape in shapes for size in shape]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck_forward(dtype, device):
    value, shapes, locations, weights = arguments(dtype=dtype, device=device)
    leaves = [t.requires_grad_() for t in (value, locations, weights)]
    torch.library.opcheck(torch.ops.attnzoo.ms_deform_attn.default, (leaves[0], flat(shapes), *leaves[1:]))


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck_backward(device):
    value, shapes, locations, weights = arguments(device=device)
    grad = torch.ones(2, 6, 24, dtype=value.dtype, device=device)
    torch.library.opcheck(
        torch.ops.attnzoo.ms_deform_attn_backward.default, (grad, value, flat(shapes), locations, weights, True)
    )


class Sampler(nn.Module):
    """A small model with the operator, for maps of any size."""

    def __init__(self, heads: int = 2, dim: int = 16):
        super().__init__()
        self.heads = heads
        self.proj = nn.Linear(dim, dim)

    def forward(self, feature_map: Tensor, locations: Tensor, logits: Tensor) -> Tensor:
        h, w = feature_map.shape[-2:]
        value = self.proj(feature_map.flatten(2).transpose(1, 2)).unflatten(-1, (self.heads, -1))
        weights = logits.flatten(-2).softmax(-1).view(logits.shape)
        return ops.ms_deform_attn(value, ((h, w),), locations, weights)


def sampler_inputs(h: int, w: int, queries: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, 16, h, w, generator=generator),
        torch.rand(2, queries, 2, 1, 4, 2, generator=generator),
        torch.randn(2, queries, 2, 1, 4, generator=generator),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic, device):
    torch.manual_seed(0)
    model = Sampler().to(device)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for h, w, queries in ((5, 7, 6), (4, 9, 3)):
        inputs = sampler_inputs(h, w, queries)
        results = []
        for function in (model, compiled):
            leaves = [t.to(device, copy=True).requires_grad_() for t in inputs]
            output = function(*leaves)
            results.append((output, *torch.autograd.grad(output.square().sum(), [*leaves, *model.parameters()])))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def test_dynamic_compilation_needs_one_graph():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(Sampler(), fullgraph=True, dynamic=True, backend=counter)
    for h, w, queries in ((5, 7, 6), (4, 9, 3), (8, 6, 11)):
        compiled(*sampler_inputs(h, w, queries))
    assert counter.frame_count == 1


def test_invalid_arguments_raise_under_compile():
    def call(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ops.ms_deform_attn(value, ((5, 7),), locations, weights)

    value, _, locations, weights = arguments(((5, 7),))
    torch.compile(call, fullgraph=True, backend="aot_eager")(value, locations, weights)
    with pytest.raises(Exception, match="has S = 34 tokens"):
        torch.compile(call, fullgraph=True, backend="aot_eager")(value[:, 1:], locations, weights)


@pytest.mark.parametrize("strict", [False, True])
def test_exports(strict):
    model = Sampler().eval()
    queries = torch.export.Dim("queries", min=2, max=1000)
    program = torch.export.export(
        model, sampler_inputs(5, 7, 6), dynamic_shapes=(None, {1: queries}, {1: queries}), strict=strict
    )
    assert any("ms_deform_attn" in str(node.target) for node in program.graph.nodes)
    other = sampler_inputs(5, 7, 13)
    torch.testing.assert_close(program.module()(*other), model(*other))


def test_meta_tensors_give_shapes():
    value, shapes, locations, weights = (t.to("meta") if isinstance(t, Tensor) else t for t in arguments())
    assert ops.ms_deform_attn(value, shapes, locations, weights).shape == (2, 6, 24)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_flops(device):
    value, shapes, locations, weights = (t.to(device) if isinstance(t, Tensor) else t for t in arguments())
    leaves = [t.requires_grad_() for t in (value, locations, weights)]
    forward = 2 * 4 * weights.numel() * value.shape[-1]
    with FlopCounterMode(display=False) as counter:
        output = ops.ms_deform_attn(leaves[0], shapes, *leaves[1:])
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2 * forward


def test_double_backward_raises():
    value, shapes, locations, weights = arguments()
    value.requires_grad_()
    locations.requires_grad_()
    output = ops.ms_deform_attn(value, shapes, locations, weights)
    (first,) = torch.autograd.grad(output.square().sum(), value, create_graph=True)
    with pytest.raises(NotImplementedError, match="does not support double backward"):
        first.sum().backward()


def test_runs_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        output = Sampler()(*sampler_inputs(5, 7, 6))  # the value is bfloat16, the softmax and locations float32
    assert output.dtype == torch.bfloat16
    assert output.isfinite().all()


FORWARD_MODES = {
    "jvp": lambda call, x: torch.func.jvp(call, (x,), (x,)),
    "jacfwd": lambda call, x: torch.func.jacfwd(call)(x),
    "jvp of vmap": lambda call, x: torch.func.jvp(torch.vmap(call), (x[None],), (x[None],)),
    "vmap of jvp": lambda call, x: torch.vmap(lambda t: torch.func.jvp(call, (x,), (t,)))(x[None]),
}


@pytest.mark.parametrize("raw", [False, True], ids=["public", "registered"])
@pytest.mark.parametrize("mode", FORWARD_MODES)
def test_forward_mode_raises(mode, raw):
    value, shapes, locations, weights = arguments()

    def call(value: Tensor) -> Tensor:
        if raw:
            return torch.ops.attnzoo.ms_deform_attn(value, flat(shapes), locations, weights)
        return ops.ms_deform_attn(value, shapes, locations, weights)

    with pytest.raises(NotImplementedError, match=r"^ms_deform_attn does not support forward-mode AD"):
        FORWARD_MODES[mode](call, value)
    torch.func.jvp(lambda x: x * call(value).sum(), (torch.ones(()),), (torch.ones(()),))  # no tangent, no error


@pytest.mark.parametrize("requires_grad", [False, True])
def test_dual_numbers_raise(requires_grad):
    value, shapes, *others = arguments()
    value.requires_grad_(requires_grad)
    with torch.autograd.forward_ad.dual_level():
        ops.ms_deform_attn(value, shapes, *others)
        dual = torch.autograd.forward_ad.make_dual(value, torch.ones_like(value))
        with pytest.raises(NotImplementedError, match="does not support forward-mode AD"):
            torch.ops.attnzoo.ms_deform_attn(dual, flat(shapes), *others)


def test_forward_mode_raises_under_compile():
    value, shapes, locations, weights = arguments()

    def derivative(value: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: ops.ms_deform_attn(x, shapes, locations, weights), (value,), (value,))[1]

    with pytest.raises(Exception, match="does not support forward-mode AD"):
        torch.compile(derivative, fullgraph=True, backend="aot_eager")(value)


def test_forward_over_reverse_raises():
    value, shapes, locations, weights = arguments()
    grad = torch.ones(2, 6, 24, dtype=value.dtype)

    def backward(grad: Tensor) -> Tensor:
        return torch.ops.attnzoo.ms_deform_attn_backward(grad, value, flat(shapes), locations, weights, True)[0]

    with pytest.raises(NotImplementedError, match=r"^ms_deform_attn_backward does not support forward-mode AD"):
        torch.func.jvp(backward, (grad,), (grad,))
