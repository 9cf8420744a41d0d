"""Deformable-DETR's API and ONNX export."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support import deform_kv_attn
from support.ops import arguments, fused_arguments
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from attnzoo import ops


def as_published(shapes: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
    """Level shapes and start indices as tensors, as in Deformable-DETR."""
    table = torch.tensor(shapes)
    return table, torch.cat([table.new_zeros(1), table.prod(1).cumsum(0)[:-1]])


def test_arguments_of_deformable_detr():
    value, shapes, locations, weights = arguments()
    leaves = [t.requires_grad_() for t in (value, locations, weights)]
    output = ops.MSDeformAttnFunction.apply(value, *as_published(shapes), locations, weights, 64)
    expected = ops.ms_deform_attn(value, shapes, locations, weights)
    assert torch.equal(output, expected)
    gradients, expected_gradients = (torch.autograd.grad(out.square().sum(), leaves) for out in (output, expected))
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected_gradients, strict=True))


def test_levels_must_be_consecutive():
    value, shapes, locations, weights = arguments()
    table, starts = as_published(shapes)
    with pytest.raises(ValueError, match="value_level_start_index: expected "):
        ops.MSDeformAttnFunction.apply(value, table, starts + 1, locations, weights)


@pytest.mark.parametrize(
    ("name", "change", "kind", "message"),
    [
        ("value_spatial_shapes", Tensor.tolist, TypeError, "expected a tensor (L, 2) of integers, got list"),
        ("value_spatial_shapes", Tensor.float, TypeError, "expected integers, got torch.float32"),
        ("value_spatial_shapes", Tensor.to_sparse, TypeError, "expected a dense tensor, got layout torch.sparse_coo"),
        ("value_spatial_shapes", Tensor.flatten, ValueError, "expected (L, 2), got shape (6,)"),
        ("value_spatial_shapes", Tensor.t, ValueError, "expected (L, 2), got shape (2, 3)"),
        ("value_level_start_index", Tensor.tolist, TypeError, "expected a tensor (L,) of integers, got list"),
        ("value_level_start_index", lambda s: s[:, None], ValueError, "expected (L,), got shape (3, 1)"),
    ],
)
def test_wrong_levels_name_the_argument(name, change, kind, message):
    value, shapes, locations, weights = arguments()
    levels = dict(zip(("value_spatial_shapes", "value_level_start_index"), as_published(shapes), strict=True))
    levels[name] = change(levels[name])
    with pytest.raises(kind) as error:
        ops.MSDeformAttnFunction.apply(value, **levels, sampling_locations=locations, attention_weights=weights)
    assert str(error.value) == f"{name}: {message}"


class Sampling(nn.Module):
    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ops.ms_deform_attn(value, ((5, 7), (3, 4), (1, 2)), locations, weights)


class FusedSampling(nn.Module):
    def forward(self, value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return ops.ms_deform_attn_fused(value, ((5, 7), (3, 4), (1, 2)), references, offsets, logits)


def in_onnx(module: nn.Module, args: tuple[Tensor, ...], file: Path) -> Callable[[Sequence[Tensor]], np.ndarray]:
    """Export the module to a file and run it in onnxruntime, with a dynamic number of queries."""
    queries = torch.export.Dim("queries", min=2, max=1000)
    program = torch.export.export(module, args, dynamic_shapes=(None, *({1: queries} for _ in args[1:])))
    plain = program.run_decompositions(ops.decompositions())
    torch.onnx.export(plain, opset_version=20, verbose=False).save(file)
    assert "GridSample" in {node.op_type for node in onnx.load(file).graph.node}
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda tensors: session.run(None, {n: t.numpy() for n, t in zip(names, tensors, strict=True)})[0]


def test_onnx_export(tmp_path):
    value, _, locations, weights = arguments(dtype=torch.float32)
    locations[0, 0, 0, 0, 0, 0], locations[0, 1, 0, 0, 0, 1] = torch.nan, torch.inf
    run = in_onnx(Sampling(), (value, locations, weights), tmp_path / "sampling.onnx")
    for repeats in (1, 2):
        args = [value, *(t.repeat(1, repeats, *[1] * (t.dim() - 2)) for t in (locations, weights))]
        np.testing.assert_allclose(run(args), Sampling()(*args).numpy(), atol=2e-6)


@pytest.mark.parametrize("box", [False, True], ids=["points", "boxes"])
def test_fused_onnx_export(tmp_path, box):
    value, _, *others = fused_arguments(box, dtype=torch.float32)
    others[0][0, 0, 0, 0], others[1][0, 1, 0, 0, 0, 1] = torch.nan, torch.inf
    run = in_onnx(FusedSampling(), (value, *others), tmp_path / "fused.onnx")
    for repeats in (1, 2):
        args = [value, *(t.repeat(1, repeats, *[1] * (t.dim() - 2)) for t in others)]
        np.testing.assert_allclose(run(args), FusedSampling()(*args).numpy(), atol=2e-6)


class KeyValueAttention(nn.Module):
    """A call of `deform_kv_attn` or `deform_kv_attn_mlp` as a module of its query."""

    def __init__(self, kind: str, call: dict[str, Any]):
        super().__init__()
        self.function, self.call = deform_kv_attn.FUNCTIONS[kind], call

    def forward(self, query: Tensor) -> Tensor:
        return self.function(**{**self.call, "query": query})


@pytest.mark.parametrize("padded", [False, True], ids=["all keys", "masked keys"])
@pytest.mark.parametrize("kind", deform_kv_attn.KINDS)
def test_attention_to_sampled_keys_in_onnx(tmp_path, kind, padded):
    call = deform_kv_attn.arguments(kind, padded=padded, dtype=torch.float32)
    if padded:
        call["key_padding"][1] = True
        call["value"][call["key_padding"][:, None, :, None].expand_as(call["value"])] = torch.nan
    module, queries = KeyValueAttention(kind, call), (call["query"], 1 - call["query"])
    plain = torch.export.export(module, queries[:1]).run_decompositions(ops.decompositions())
    torch.onnx.export(plain, opset_version=20, verbose=False).save(tmp_path / "attention.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "attention.onnx", providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())
    for query in queries:
        (output,) = session.run(None, {name: query.numpy()})
        np.testing.assert_allclose(output, module(query).numpy(), atol=5e-6)


@pytest.mark.parametrize("kind", deform_kv_attn.KINDS)
def test_decompositions_return_the_logsumexp(kind):
    """It is the second result of the operator, from which its backward pass recomputes the weights."""
    call = deform_kv_attn.arguments(kind)
    call["key_padding"][1] = True
    recorded = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func in ops.decompositions():
                recorded.append((result, ops.decompositions()[func](*args)))
            return result

    with Record():
        deform_kv_attn.FUNCTIONS[kind](**call)
    ((results, decomposed),) = recorded
    for result, other in zip(results, decomposed, strict=True):
        torch.testing.assert_close(other, result)
