"""Plain and deformable convolution against loops in float64, and at their initialisation."""

import itertools
import math
from typing import Any

import pytest
import torch
from support.attention import padded_memory, perturbed
from torch import Tensor
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from attnzoo.attention import build, record
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot

DIM, MAPS = 4, ((4, 5), (3, 2))


def pixel(maps: Tensor, row: int, column: int) -> Tensor:
    """A pixel (C,) of maps (h, w, C), zero outside."""
    inside = 0 <= row < maps.shape[0] and 0 <= column < maps.shape[1]
    return maps[row, column] if inside else torch.zeros_like(maps[0, 0])


def bilinear(maps: Tensor, row: float, column: float) -> Tensor:
    value, top, left = torch.zeros_like(maps[0, 0]), math.floor(row), math.floor(column)
    for i, j in itertools.product((top, top + 1), (left, left + 1)):
        value = value + (1 - abs(row - i)) * (1 - abs(column - j)) * pixel(maps, i, j)
    return value


def correlate(maps: Tensor, conv: Any, row: int, column: int) -> Tensor:
    k, output = conv.weight.shape[-1], conv.bias
    for i, j in itertools.product(range(k), range(k)):
        output = output + conv.weight[:, :, i, j] @ pixel(maps, row + i - k // 2, column + j - k // 2)
    return output


def loop(attention: Any, memory: Pyramid) -> Tensor:
    """Tap by tap: w_k · x(p + p_k + Δ_k) · m_k, with Δ (y, x) and m of every tap from a convolution of the queries."""
    assert memory.pos is not None
    assert memory.layout.padding_mask is not None
    kept = ~memory.layout.padding_mask[..., None]
    k = attention.kernel
    outputs = []
    for level, (h, w) in enumerate(memory.layout.spatial_shapes):
        lengths = memory.layout.tokens_per_level
        values, queries = (
            (x * kept).split(lengths, 1)[level].unflatten(1, (h, w))
            for x in (memory.tokens, memory.tokens + memory.pos)
        )
        for b, row, column in itertools.product(range(2), range(h), range(w)):
            if not hasattr(attention, "conv_offset"):
                outputs.append(correlate(values[b], attention.conv, row, column))
                continue
            predicted, output = correlate(queries[b], attention.conv_offset, row, column), attention.conv.bias
            for i, j in itertools.product(range(k), range(k)):
                tap = i * k + j
                dy, dx = predicted[2 * tap : 2 * tap + 2].tolist()
                scale = predicted[2 * k * k + tap].sigmoid() if attention.modulation else 1.0
                sample = bilinear(values[b], row + i - k // 2 + dy, column + j - k // 2 + dx)
                output = output + scale * attention.conv.weight[:, :, i, j] @ sample
            outputs.append(output)
    by_level = torch.stack(outputs).split([2 * n for n in memory.layout.tokens_per_level])
    return torch.cat([x.unflatten(0, (2, -1)) for x in by_level], 1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("conv", {}), ("conv", {"kernel": 1}), ("conv", {"kernel": 5}),
        ("dcn", {}), ("dcn", {"modulation": False}), ("dcn", {"kernel": 1}), ("dcn", {"kernel": 5}),
    ],
)  # fmt: skip
def test_equals_a_loop(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    attention, memory = perturbed(build(name, Slot(DIM, 2, 2), **options), 0.3), padded_memory(MAPS, DIM)
    expected = loop(attention, memory)
    assert_close(attention(memory.as_queries(), memory), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("modulation", "factor"), [(False, 1.0), (True, 0.5)])
def test_deformable_convolution_starts_as_a_convolution(modulation: bool, factor: float) -> None:
    """Offsets start at 0, the modulation at ½ (Zhu et al. 2019, section 3.2)."""
    torch.manual_seed(0)
    plain = build("conv", Slot(DIM, 2, 2)).double()
    deformable = build("dcn", Slot(DIM, 2, 2), modulation=modulation).double()
    deformable.load_state_dict(plain.state_dict(), strict=False)
    memory = padded_memory(MAPS, DIM)
    bias = plain.conv.bias
    expected = factor * (plain(memory.as_queries(), memory) - bias) + bias
    assert_close(deformable(memory.as_queries(), memory), expected, atol=1e-12, rtol=0)


def test_offsets_learn_from_their_initialisation() -> None:
    torch.manual_seed(0)
    attention, memory = build("dcn", Slot(DIM, 2, 2)).double(), padded_memory(MAPS, DIM)
    attention(memory.as_queries(), memory).square().sum().backward()
    gradient = attention.conv_offset.weight.grad
    assert gradient is not None
    assert gradient.flatten(1).abs().amax(1).min() > 1e-6


def test_recorded_taps() -> None:
    """Locations are in [0, 1] of the map of the level; a shifted tap reads where it is recorded."""
    attention: Any = build("dcn", Slot(DIM, 2, 2))
    with torch.no_grad():
        attention.conv_offset.bias[2 * 4 : 2 * 4 + 2] = torch.tensor([1.0, 0.5])  # the centre: one down, half right
    layout = Layout.unpadded(MAPS, 1)
    memory = Pyramid(torch.randn(1, 26, DIM), layout)
    with record(attention) as recording:
        attention(memory.as_queries(), memory)
    (entry,) = recording[""]
    assert entry["weights"].shape == (1, 26, 1, 9)
    assert_close(entry["weights"], torch.full((1, 26, 1, 9), 0.5))
    sizes = torch.tensor([(5, 4)] * 20 + [(2, 3)] * 6)
    pixels = entry["locations"][0] * sizes[:, None] - 0.5
    centers = layout.centers[0] * sizes - 0.5
    assert_close(pixels[:, 4], centers + torch.tensor([0.5, 1.0]), atol=1e-5, rtol=0)
    assert_close(pixels[:, 0], centers - 1, atol=1e-5, rtol=0)
    assert_close(pixels[:, 5], centers + torch.tensor([1.0, 0.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["conv", "dcn"])
def test_flops_of_a_training_step_are_counted(name: str) -> None:
    """The backward pass costs twice the forward pass."""
    attention = build(name, Slot(DIM, 2, 1))
    layout = Layout.unpadded(MAPS[:1], 1)
    memory = Pyramid(torch.randn(1, 20, DIM, requires_grad=True), layout)
    with FlopCounterMode(display=False) as counter:
        attention(memory.as_queries(), memory).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * attention.flops(layout, layout)


@pytest.mark.parametrize("name", ["conv", "dcn"])
def test_rejects_options_roles_and_queries_without_a_grid(name: str) -> None:
    for kernel in (0, 2, -1):
        with pytest.raises(UserError, match=f"kernel = {kernel}: must be odd and positive"):
            build(name, Slot(DIM, 2), kernel=kernel)
    with pytest.raises(UserError, match=f"attention '{name}' does not support role decoder"):
        build(name, Slot(DIM, 2, 1, Role.DECODER))
    memory = padded_memory(MAPS, DIM).level(0)
    with pytest.raises(ValueError, match="needs one query per token of the memory: expected 20, got 3"):
        build(name, Slot(DIM, 2)).double()(Queries(memory.tokens[:, :3]), memory)
