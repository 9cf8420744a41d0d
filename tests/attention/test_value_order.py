"""Deformable attention that projects values after sampling, against the usual order."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from support.attention import padded_memory, perturbed
from torch import Tensor
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from attnzoo.attention import build, record
from attnzoo.attention.deformable import MultiScaleDeformableAttention
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot

DIM, HEADS, MAPS = 16, 4, ((5, 7), (3, 4))


def attention_of(name: str = "ms_deform", **options: object) -> MultiScaleDeformableAttention:
    """In the decoder, in float64; offsets of several pixels, so that many points are outside the small maps."""
    torch.manual_seed(0)
    attention = perturbed(build(name, Slot(DIM, HEADS, len(MAPS), Role.DECODER), **options), 0.4)
    assert isinstance(attention, MultiScaleDeformableAttention)
    return attention


def memory_of(padded: bool) -> Pyramid:
    torch.manual_seed(1)
    memory = padded_memory(MAPS, DIM)
    return memory if padded else replace(memory, layout=Layout.unpadded(MAPS, 2))


def queries_of(reference_size: int) -> Queries:
    torch.manual_seed(2)
    tokens, pos = torch.randn(2, 2, 6, DIM, dtype=torch.float64)
    return Queries(tokens, torch.rand(2, 6, reference_size, dtype=torch.float64), pos)


def results(
    attention: MultiScaleDeformableAttention, queries: Queries, memory: Pyramid, after: bool
) -> Iterator[Tensor]:
    """The output, and the gradients of memory, queries, reference points and parameters."""
    attention.projects_after_sampling = after
    tokens, query, points = (
        x.detach().requires_grad_() for x in (memory.tokens, queries.tokens, queries.reference_points)
    )
    output = attention(replace(queries, tokens=query, reference_points=points), replace(memory, tokens=tokens))
    grad_output = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    leaves = [tokens, query, points, *attention.parameters()]
    yield output.detach()
    yield from torch.autograd.grad(output, leaves, grad_output, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("reference_size", [2, 4])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ms_deform", {}),
        ("ms_deform", {"offsets": "frozen", "sampling": "nearest", "points": 3}),
        ("deform", {"level": 1}),
    ],
)
def test_equals_the_usual_order(name: str, options: dict[str, object], reference_size: int, padded: bool) -> None:
    attention, queries, memory = attention_of(name, **options), queries_of(reference_size), memory_of(padded)
    usual, after = (list(results(attention, queries, memory, order)) for order in (False, True))
    for actual, expected in zip(after, usual, strict=True):
        assert_close(actual, expected, atol=1e-11, rtol=1e-11)
    assert usual[0].std() > 0.1


def test_points_outside_the_valid_map_read_no_bias() -> None:
    attention, memory = attention_of(), memory_of(padded=True)
    far = replace(queries_of(2), reference_points=torch.full((2, 6, 2), 50.0, dtype=torch.float64))
    attention.projects_after_sampling = True
    assert_close(attention(far, memory), attention.output_proj.bias.expand(2, 6, DIM))


def test_padding_may_hold_anything() -> None:
    attention, queries, memory = attention_of(), queries_of(2), memory_of(padded=True)
    attention.projects_after_sampling = True
    garbage = memory.tokens.masked_fill(memory.layout.padding_mask[..., None], torch.inf)
    assert_close(attention(queries, replace(memory, tokens=garbage)), attention(queries, memory))


def test_records_the_same() -> None:
    attention, queries, memory = attention_of(), queries_of(4), memory_of(padded=True)
    outputs, recordings = [], []
    for attention.projects_after_sampling in (False, True):
        with record(attention) as recording:
            outputs.append(attention(queries, memory))
        (entry,) = recording[""]
        recordings.append(entry)
    assert_close(*outputs)
    assert_close(*recordings)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_correct_too(dtype: torch.dtype) -> None:
    attention, queries, memory = attention_of().float(), queries_of(2), memory_of(padded=True)
    queries = Queries(queries.tokens.float(), queries.reference_points.float(), queries.pos.float())
    attention.projects_after_sampling = True
    memory = replace(memory, tokens=memory.tokens.float())
    expected = attention(queries, memory)
    with torch.autocast("cpu", dtype):
        assert_close(attention(queries, memory).float(), expected, atol=0.2, rtol=0.05)


FEW, MANY = 3, 200
LARGE = ((24, 32), (12, 16))


@pytest.mark.parametrize(
    ("role", "queries", "after"), [(Role.DECODER, FEW, True), (Role.DECODER, MANY, False), (Role.ENCODER, None, False)]
)
@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
def test_few_queries_on_large_maps_are_projected_after_sampling(
    role: Role, queries: int | None, after: bool, sampling: str
) -> None:
    """Told from the multiply-accumulates that torch counts, which `flops` and `extra_flops` sum up to."""
    options = {} if sampling == "bilinear" else {"sampling": "nearest", "offsets": "frozen"}
    attention = build("ms_deform", Slot(64, HEADS, 2, role), **options)
    layout = Layout.unpadded(LARGE, 1)
    memory = Pyramid(torch.randn(1, layout.num_tokens, 64), layout)
    objects = Queries(torch.randn(1, FEW, 64), torch.rand(1, FEW, 2))
    if queries is not None:
        objects = Queries(torch.randn(1, queries, 64), torch.rand(1, queries, 2))
    sizes = (layout if queries is None else queries, layout)
    with FlopCounterMode(display=False) as counter:
        attention(memory.as_queries() if queries is None else objects, memory)
    needed, extra = attention.flops(*sizes), attention.extra_flops(*sizes)
    assert counter.get_total_flops() == 2 * (needed + extra)
    assert (extra < 0) == after


def test_the_usual_order_stays_where_the_other_is_not_measured() -> None:
    attention = build("ms_deform", Slot(64, HEADS, 2, Role.DECODER))
    layout = Layout.unpadded(LARGE, 1)
    assert attention.extra_flops(FEW, layout) < 0
    with torch.autocast("cpu", torch.bfloat16):
        assert attention.extra_flops(FEW, layout) == 0
    assert attention.bfloat16().extra_flops(FEW, layout) == 0


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic: bool) -> None:
    attention = build("ms_deform", Slot(64, HEADS, 2, Role.DECODER))
    layout = Layout.unpadded(LARGE, 1)
    memory = Pyramid(torch.randn(1, layout.num_tokens, 64), layout)
    queries = Queries(torch.randn(1, FEW, 64), torch.rand(1, FEW, 2))
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    assert_close(compiled(queries, memory), attention(queries, memory), atol=1e-5, rtol=1e-5)
