"""Attention of every pixel to the pixels around it, against dense attention with a mask made pixel by pixel."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attnzoo.attention import Attention, build, record
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot

DIM, HEADS = 12, 3


def make(levels: int = 1, **options: Any) -> Attention:
    torch.manual_seed(0)
    role = Role.STAGE if levels == 1 else Role.ENCODER
    attention = build("neighborhood", Slot(DIM, HEADS, levels, role), **options).double().eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return attention


def pyramid(shapes: list[tuple[int, int]], masks: list[Tensor] | None = None) -> Pyramid:
    g = torch.Generator().manual_seed(1)
    layout = Layout.from_masks(masks) if masks else Layout.unpadded(shapes, 2)
    tokens, pos = torch.randn(2, 2, layout.num_tokens, DIM, generator=g, dtype=torch.float64)
    return Pyramid(tokens, layout, pos)


def neighbors(position: int, size: int, kernel: int) -> range:
    """The positions of a neighborhood along one axis: centred, shifted inwards at the borders."""
    start = min(max(position - kernel // 2, 0), max(size - kernel, 0))
    return range(start, min(start + kernel, size))


def dense(attention: Attention, memory: Pyramid, kernel: int, queries: Queries | None = None) -> Tensor:
    ((h, w),) = memory.layout.spatial_shapes
    query = (queries or memory.as_queries()).with_pos_embed()
    q, k, v = (
        (x @ weight.T + bias).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for x, weight, bias in zip(
            (query, memory.with_pos_embed(), memory.tokens),
            attention.qkv.weight.chunk(3),
            attention.qkv.bias.chunk(3),
            strict=True,
        )
    )
    bias = torch.full((HEADS, h * w, h * w), -torch.inf, dtype=torch.float64)
    for i in range(h * w):
        (yi, xi) = divmod(i, w)
        for yj in neighbors(yi, h, kernel):
            for xj in neighbors(xi, w, kernel):
                table = attention.rpb
                bias[:, i, yj * w + xj] = 0 if table is None else table[:, yj - yi + kernel - 1, xj - xi + kernel - 1]
    weights = (q @ k.transpose(2, 3) / (DIM / HEADS) ** 0.5 + bias).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2) @ attention.proj.weight.T + attention.proj.bias


@pytest.mark.parametrize("shape", [(6, 9), (8, 5), (3, 7), (2, 2), (1, 4), (11, 12)], ids=str)
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_equals_dense_attention_with_a_mask(shape: tuple[int, int], kernel: int) -> None:
    attention, memory = make(kernel=kernel), pyramid([shape])
    assert_close(attention(memory.as_queries(), memory), dense(attention, memory, kernel), atol=1e-12, rtol=1e-12)


def test_without_bias() -> None:
    attention, memory = make(kernel=3, bias=False), pyramid([(6, 9)])
    assert_close(attention(memory.as_queries(), memory), dense(attention, memory, 3), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("pos", [True, False])
def test_queries_different_from_memory(pos: bool) -> None:
    """Queries are projected from the queries, keys and values from the memory."""
    attention, memory = make(kernel=3), pyramid([(6, 9)])
    tokens, embedding = torch.randn(2, 2, 54, DIM, dtype=torch.float64)
    queries = Queries(tokens, pos=embedding if pos else None)
    assert_close(attention(queries, memory), dense(attention, memory, 3, queries), atol=1e-12, rtol=1e-12)


def test_rejects_queries_that_are_not_on_the_grid() -> None:
    attention, memory = make(kernel=3), pyramid([(6, 9)])
    with pytest.raises(ValueError, match="needs one query per token of the memory: expected 54, got 5"):
        attention(Queries(memory.tokens[:, :5]), memory)


def test_levels_are_attended_independently() -> None:
    attention, memory = make(levels=2, kernel=3), pyramid([(6, 9), (3, 5)])
    alone = [dense(attention, memory.level(level), 3) for level in range(2)]
    assert_close(attention(memory.as_queries(), memory), torch.cat(alone, 1), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("valid", [(5, 6), (2, 7), (3, 3), (1, 1), (11, 12), (4, 11)], ids=str)
def test_padding_does_not_change_outputs(valid: tuple[int, int]) -> None:
    h, w = valid
    mask = torch.ones(2, 11, 12, dtype=torch.bool)
    mask[0, :h, :w] = False
    mask[1] = False
    attention, memory = make(kernel=3), pyramid([(11, 12)], masks=[mask])
    inside = ~mask[0].flatten()
    alone = Pyramid(memory.tokens[:1, inside], Layout.unpadded([valid], 1), memory.pos[:1, inside])
    together = attention(memory.as_queries(), memory)
    assert_close(together[:1, inside], dense(attention, alone, 3), atol=1e-12, rtol=1e-12)
    assert_close(together[1:], dense(attention, memory, 3)[1:], atol=1e-12, rtol=1e-12)


def test_record_shows_the_neighbors() -> None:
    attention, memory = make(kernel=3), pyramid([(6, 9)])
    with record(attention) as recording:
        attention(memory.as_queries(), memory)
    (entry,) = recording[""]
    seen = entry["weights"].amax(2) > 0  # (B, S, K)
    assert (seen.sum(-1) == 9).all()
    pixels = entry["locations"] * torch.tensor([9.0, 6.0]) - 0.5
    actual = {(round(x), round(y)) for x, y in pixels[0, 0][seen[0, 0]].tolist()}
    assert actual == {(x, y) for x in range(3) for y in range(3)}  # of the corner


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_inference_equals_the_path_with_gradients(padded: bool, bias: bool) -> None:
    """On 56 tiles, which are processed in two parts for inference."""
    mask = torch.zeros(2, 22, 20, dtype=torch.bool)
    mask[0], mask[0, :13, :9] = padded, False
    attention, memory = make(kernel=3, bias=bias), pyramid([(22, 20)], masks=[mask] if padded else None)
    expected = attention(memory.as_queries(), memory)
    with torch.inference_mode():
        assert_close(attention(memory.as_queries(), memory), expected.detach(), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kernel", [0, 4, -3])
def test_errors_name_the_option(kernel: int) -> None:
    with pytest.raises(UserError, match=f"kernel = {kernel}"):
        build("neighborhood", Slot(DIM, HEADS), kernel=kernel)
