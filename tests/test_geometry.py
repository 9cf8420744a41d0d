"""Layouts of padded pyramids; geometry under torch.compile, export and activation checkpointing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot


def masks_of(sizes: list[tuple[int, int]], valid: list[tuple[int, int]]) -> list[Tensor]:
    """One mask per level, with the valid (h, w) at the top left of (h, w); a second image without padding."""
    masks = []
    for (h, w), (vh, vw) in zip(sizes, valid, strict=True):
        mask = torch.zeros(2, h, w, dtype=torch.bool)
        mask[0] = True
        mask[0, :vh, :vw] = False
        masks.append(mask)
    return masks


SIZES, VALID = [(4, 6), (2, 3)], [(3, 4), (2, 2)]


def test_layout_of_masks() -> None:
    layout = Layout.from_masks(masks_of(SIZES, VALID))
    assert layout.spatial_shapes == ((4, 6), (2, 3))
    assert (layout.num_levels, layout.num_tokens, layout.tokens_per_level) == (2, 30, (24, 6))
    assert torch.equal(layout.sizes_wh, torch.tensor([[6.0, 4.0], [3.0, 2.0]]))
    assert_close(layout.valid_ratios[0], torch.tensor([[4 / 6, 3 / 4], [2 / 3, 1.0]]))
    assert torch.equal(layout.valid_ratios[1], torch.ones(2, 2))
    assert layout.padding_mask is not None
    assert layout.padding_mask.sum(1).tolist() == [24 - 12 + 6 - 4, 0]
    assert layout.valid_ratios.dtype == layout.centers.dtype == torch.float32


def test_centers_are_normalised_to_the_valid_image() -> None:
    """Pixel i of n valid ones is at (i + ½) / n, x before y; padded ones are above 1."""
    layout = Layout.from_masks(masks_of(SIZES, VALID))
    first = layout.centers[0, :24].view(4, 6, 2)
    assert_close(first[2, 3], torch.tensor([3.5 / 4, 2.5 / 3]))
    assert_close(layout.centers[1, :24].view(4, 6, 2)[2, 3], torch.tensor([3.5 / 6, 2.5 / 4]))
    assert layout.padding_mask is not None
    assert torch.equal((layout.centers > 1).any(-1), layout.padding_mask)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.integers(1, 9)] * 4), min_size=1, max_size=3))
def test_centers_map_back_to_their_pixels(levels: list[tuple[int, int, int, int]]) -> None:
    """center · valid_ratio · size − ½ is the pixel's index on the padded map, on every level."""
    sizes = [(max(h, vh), max(w, vw)) for h, w, vh, vw in levels]
    layout = Layout.from_masks(masks_of(sizes, [(vh, vw) for _, _, vh, vw in levels]))
    for index, (h, w) in enumerate(sizes):
        level = layout.level(index)
        pixels = level.centers * level.valid_ratios * level.sizes_wh - 0.5
        expected = torch.stack(torch.meshgrid(torch.arange(w), torch.arange(h), indexing="xy"), -1).flatten(0, 1)
        assert_close(pixels, expected.float().expand_as(pixels), atol=1e-5, rtol=0)


def test_unpadded_is_a_mask_without_padding() -> None:
    unpadded = Layout.unpadded(SIZES, 2)
    masked = Layout.from_masks(masks_of(SIZES, SIZES))
    assert unpadded.padding_mask is None
    assert unpadded.spatial_shapes == masked.spatial_shapes
    for name in ("valid_ratios", "centers", "sizes_wh"):
        assert torch.equal(getattr(unpadded, name), getattr(masked, name)), name


def test_image_of_only_padding_has_finite_geometry() -> None:
    layout = Layout.from_masks([torch.ones(1, 4, 6, dtype=torch.bool)])
    assert layout.centers.isfinite().all()
    assert (layout.valid_ratios > 0).all()


def test_level_selects_one_level() -> None:
    layout = Layout.from_masks(masks_of(SIZES, VALID))
    memory = Pyramid(torch.randn(2, 30, 8), layout, torch.randn(2, 30, 8))
    for index, level_slice in enumerate((slice(0, 24), slice(24, 30))):
        alone = memory.level(index)
        direct = Layout.from_masks(masks_of(SIZES[index : index + 1], VALID[index : index + 1]))
        assert alone.layout.spatial_shapes == direct.spatial_shapes
        for name in ("padding_mask", "valid_ratios", "centers", "sizes_wh"):
            assert torch.equal(getattr(alone.layout, name), getattr(direct, name)), name
        assert torch.equal(alone.tokens, memory.tokens[:, level_slice])
        assert torch.equal(alone.with_pos_embed(), memory.with_pos_embed()[:, level_slice])
    assert Pyramid(memory.tokens, layout).level(1).pos is None


def test_queries_of_a_pyramid_are_its_tokens_and_centers() -> None:
    memory = Pyramid(torch.randn(2, 30, 8), Layout.from_masks(masks_of(SIZES, VALID)), torch.randn(2, 30, 8))
    queries = memory.as_queries()
    assert queries.tokens is memory.tokens
    assert queries.reference_points is memory.layout.centers
    assert queries.layout is memory.layout
    assert torch.equal(queries.with_pos_embed(), memory.tokens + memory.pos)
    assert Queries(memory.tokens).with_pos_embed() is memory.tokens


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 10, "heads": 4}, "dim=10 is not divisible by heads=4"),
        ({"dim": 0, "heads": 4}, "must be at least 1"),
        ({"dim": 8, "heads": 4, "levels": 0}, "must be at least 1"),
        ({"dim": 8, "heads": 4, "levels": 2, "role": Role.STAGE}, "a stage has one level, not 2"),
        ({"dim": 8, "heads": 4, "levels": 2, "map_sizes": ((3, 4),)}, "map_sizes has 1 entries for levels=2"),
    ],
)
def test_rejects_impossible_slots(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Slot(**arguments)


def use_geometry(tokens: Tensor, masks: list[Tensor]) -> Tensor:
    """The result depends on every part of the geometry."""
    memory = Pyramid(tokens, Layout.from_masks(masks), tokens.sin())
    queries, last = memory.as_queries(), memory.level(memory.layout.num_levels - 1)
    assert queries.reference_points is not None
    assert last.layout.padding_mask is not None
    sizes = last.layout.sizes_wh.sum() * last.layout.valid_ratios.sum()
    points = queries.reference_points.sum(-1, keepdim=True)
    return queries.with_pos_embed() * points * sizes + last.layout.padding_mask.sum()


class UsesGeometry(torch.nn.Module):
    def forward(self, tokens: Tensor, masks: list[Tensor]) -> Tensor:
        return use_geometry(tokens, masks)


class UsesPyramid(torch.nn.Module):
    """Takes geometry itself as input."""

    def forward(self, memory: Pyramid) -> Tensor:
        return memory.with_pos_embed() * memory.layout.centers.sum(-1, keepdim=True)


def test_compiles_without_breaks_for_all_sizes() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(use_geometry, fullgraph=True, dynamic=True, backend="eager")
    for grow in (1, 3):  # sizes that are equal by chance would be taken for one size
        masks = masks_of([(h + grow, w + 3 * grow) for h, w in SIZES], VALID)
        tokens = torch.randn(2, sum(m[0].numel() for m in masks), 8)
        assert_close(compiled(tokens, masks), use_geometry(tokens, masks))


def test_exports() -> None:
    masks, tokens = masks_of(SIZES, VALID), torch.randn(2, 30, 8)
    exported = torch.export.export(UsesGeometry(), (tokens, masks)).module()
    assert_close(exported(tokens * 2, masks), use_geometry(tokens * 2, masks))
    memory = Pyramid(tokens, Layout.from_masks(masks), tokens)
    assert_close(torch.export.export(UsesPyramid(), (memory,)).module()(memory), UsesPyramid()(memory))


def test_checkpointing_keeps_gradients_through_geometry() -> None:
    tokens, masks = torch.randn(2, 30, 8, requires_grad=True), masks_of(SIZES, VALID)
    weight = torch.randn(8, requires_grad=True)

    def layer(memory: Pyramid) -> Tensor:
        return memory.with_pos_embed() * weight

    memory = Pyramid(tokens * 2, Layout.from_masks(masks), tokens.sin())
    expected = torch.autograd.grad(layer(memory).square().sum(), (tokens, weight), retain_graph=True)
    output = checkpoint(layer, memory, use_reentrant=False)
    assert isinstance(output, Tensor)
    assert_close(torch.autograd.grad(output.square().sum(), (tokens, weight)), expected)
