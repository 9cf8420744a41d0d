"""The module `MSDeformAttn` against plain loops over the published formula."""

import pytest
import torch
from torch import Tensor

from attnzoo.attention import build
from attnzoo.geometry import Slot
from attnzoo.ops import MSDeformAttn

SHAPES = [(5, 7), (2, 3)]
BATCH, QUERIES, DIM, HEADS, POINTS = 2, 4, 12, 3, 2


def bilinear(level: Tensor, x: float, y: float) -> Tensor:
    """The value of a map (h, w, D) at pixel coordinates; zero outside."""
    height, width, dim = level.shape
    total = level.new_zeros(dim)
    left, top = int(x // 1), int(y // 1)
    for i, j in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= i < height and 0 <= j < width:
            total += (1 - abs(y - i)) * (1 - abs(x - j)) * level[i, j]
    return total


def by_loops(module: MSDeformAttn, query: Tensor, refs: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    value = module.value_proj(tokens)
    value[mask] = 0
    offsets = module.sampling_offsets(query).view(BATCH, QUERIES, HEADS, len(SHAPES), POINTS, 2)
    weights = module.attention_weights(query).view(BATCH, QUERIES, HEADS, -1).softmax(-1)
    output = query.new_zeros(BATCH, QUERIES, HEADS, DIM // HEADS)
    for b, q, m in torch.cartesian_prod(torch.arange(BATCH), torch.arange(QUERIES), torch.arange(HEADS)).tolist():
        start = 0
        for level, (height, width) in enumerate(SHAPES):
            heads = value[b, start : start + height * width].view(height, width, HEADS, -1)
            start += height * width
            for k in range(POINTS):
                dx, dy = offsets[b, q, m, level, k].tolist()
                ref = refs[b, q, level].tolist()
                if len(ref) == 2:
                    x, y = ref[0] * width + dx, ref[1] * height + dy
                else:
                    x = (ref[0] + dx / POINTS * ref[2] * 0.5) * width
                    y = (ref[1] + dy / POINTS * ref[3] * 0.5) * height
                output[b, q, m] += weights[b, q, m, level * POINTS + k] * bilinear(heads[:, :, m], x - 0.5, y - 0.5)
    return module.output_proj(output.flatten(2))


@pytest.fixture
def module() -> MSDeformAttn:
    torch.manual_seed(0)
    module = MSDeformAttn(DIM, len(SHAPES), HEADS, POINTS).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


@torch.no_grad()
@pytest.mark.parametrize("coordinates", [2, 4])
def test_output(module: MSDeformAttn, coordinates: int) -> None:
    tokens = sum(h * w for h, w in SHAPES)
    query, memory = torch.randn(BATCH, QUERIES, DIM).double(), torch.randn(BATCH, tokens, DIM).double()
    refs = torch.rand(BATCH, QUERIES, len(SHAPES), coordinates).double()
    mask = torch.rand(BATCH, tokens) < 0.2
    starts = torch.tensor([0, SHAPES[0][0] * SHAPES[0][1]])
    actual = module(query, refs, memory, torch.tensor(SHAPES), starts, mask)
    torch.testing.assert_close(actual, by_loops(module, query, refs, memory, mask), atol=1e-12, rtol=0)


def test_defaults_are_those_of_the_published_module() -> None:
    module = MSDeformAttn()
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        "sampling_offsets.weight": (256, 256),
        "sampling_offsets.bias": (256,),
        "attention_weights.weight": (128, 256),
        "attention_weights.bias": (128,),
        "value_proj.weight": (256, 256),
        "value_proj.bias": (256,),
        "output_proj.weight": (256, 256),
        "output_proj.bias": (256,),
    }
    first_ring = module.sampling_offsets.bias.view(8, 4, 4, 2)[:, 0, 0]
    expected = [[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]]
    torch.testing.assert_close(first_ring, torch.tensor(expected).float(), atol=1e-6, rtol=0)
    attention = build("ms_deform", Slot(256, 8, 4))
    module.load_state_dict(attention.state_dict())
    with pytest.raises(ValueError, match="d_model must be divisible by n_heads, but got 10 and 3"):
        MSDeformAttn(10, 4, 3)


def test_levels_must_be_consecutive(module: MSDeformAttn) -> None:
    query, memory = torch.zeros(1, 1, DIM).double(), torch.zeros(1, 41, DIM).double()
    with pytest.raises(ValueError, match=r"input_level_start_index: expected \[0, 35\]"):
        module(query, torch.zeros(1, 1, 2, 2).double(), memory, torch.tensor(SHAPES), torch.tensor([0, 36]))
