"""Deformable attention: the identities that its definition implies, and its published sizes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import deform_conv2d

from attnzoo.attention import build, record
from attnzoo.attention.deformable import DeformableAttention, MultiScaleDeformableAttention
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot

MAPS = ((5, 7), (3, 4))


def perturbed(attention: torch.nn.Module, scale: float = 0.3) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale)
    return attention


def memory_of(maps: tuple[tuple[int, int], ...], dim: int, dtype: torch.dtype = torch.float32) -> Pyramid:
    layout = Layout.unpadded(maps, 2)
    tokens, pos = torch.randn(2, 2, layout.num_tokens, dim, dtype=dtype)
    return Pyramid(tokens, layout, pos)


def with_identity_projections(attention: MultiScaleDeformableAttention) -> None:
    with torch.no_grad():
        for projection in (attention.value_proj, attention.output_proj):
            projection.weight.copy_(torch.eye(attention.slot.dim))
            projection.bias.zero_()


@pytest.mark.parametrize(("levels", "expected"), [(1, 156_256), (4, 230_272)])
def test_published_number_of_parameters(levels: int, expected: int) -> None:
    attention = build("ms_deform", Slot(256, 8, levels))
    assert sum(p.numel() for p in attention.parameters()) == expected
    names = {name.split(".")[0] for name, _ in attention.named_parameters()}
    assert names == {"sampling_offsets", "attention_weights", "value_proj", "output_proj"}


def test_initial_points_are_on_rings() -> None:
    """Heads point in M directions, point k is k + 1 pixels away: squares of 3, 5, 7, 9 pixels for M = 8, K = 4."""
    attention = MultiScaleDeformableAttention(Slot(32, 8, levels=2))
    assert torch.equal(attention.sampling_offsets.weight, torch.zeros(128, 32))
    offsets = attention.sampling_offsets.bias.detach().view(8, 2, 4, 2)
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for level in range(2):
        for ring in range(4):
            expected = torch.tensor(directions, dtype=torch.float32) * (ring + 1)
            assert_close(offsets[:, level, ring], expected, atol=1e-5, rtol=0)


def test_initial_rings_span_the_box() -> None:
    attention = MultiScaleDeformableAttention(Slot(32, 8))
    memory = memory_of(MAPS[:1], 32)
    box = torch.tensor([0.5, 0.4, 0.2, 0.6]).expand(2, 1, 4)
    with record(attention) as recording:
        attention(Queries(torch.randn(2, 1, 32), box), memory)
    shifts = (recording[""][0]["locations"] - box[0, 0, :2]).flatten(0, -2).abs().amax(0)
    assert_close(shifts, box[0, 0, 2:] / 2)


def test_zero_logits_give_uniform_weights() -> None:
    """At initialisation each of the L·K weights is 1 / (L·K), not 0."""
    attention, memory = MultiScaleDeformableAttention(Slot(16, 4, levels=2), points=3), memory_of(MAPS, 16)
    with record(attention) as recording:
        output = attention(memory.as_queries(), memory)
    assert_close(recording[""][0]["weights"], torch.full((2, 47, 4, 2, 3), 1 / 6))
    assert output.abs().max() > 0.1


def test_weights_of_all_levels_share_one_softmax() -> None:
    attention, memory = perturbed(MultiScaleDeformableAttention(Slot(16, 4, levels=2))), memory_of(MAPS, 16)
    with record(attention) as recording:
        attention(memory.as_queries(), memory)
    weights = recording[""][0]["weights"]
    assert_close(weights.sum((-1, -2)), torch.ones(2, 47, 4))
    assert weights.sum(-1).std() > 0.01


def test_single_point_is_deformable_convolution() -> None:
    """L = K = 1 with identity projections is a 1x1 deformable convolution with M offset groups."""
    torch.manual_seed(0)
    dim, heads, (h, w) = 8, 4, (5, 7)
    attention = perturbed(MultiScaleDeformableAttention(Slot(dim, heads), points=1)).double()
    with_identity_projections(attention)
    memory = memory_of(((h, w),), dim, torch.float64)
    refs = torch.stack(torch.meshgrid(torch.arange(w), torch.arange(h), indexing="xy"), -1).double().flatten(0, 1)
    refs = ((refs + 0.5) / torch.tensor([w, h])).expand(2, -1, -1)
    offsets = attention.sampling_offsets(memory.with_pos_embed())
    # torchvision wants (dy, dx) per group as channels; W′ = I means each output channel samples its own input channel.
    planes = offsets.view(2, h, w, heads, 2).flip(-1).flatten(3).permute(0, 3, 1, 2)
    image = memory.tokens.transpose(1, 2).reshape(2, dim, h, w)
    expected = deform_conv2d(image, planes, torch.eye(dim, dtype=torch.float64)[..., None, None])
    output = attention(replace(memory.as_queries(), reference_points=refs), memory)
    assert_close(output.transpose(1, 2).reshape(2, dim, h, w), expected, atol=1e-12, rtol=0)


def test_all_positions_with_softmax_weights_is_dense_attention() -> None:
    """Points at all centres equal dense attention only if they carry the query-key weights; uniform ones do not."""
    torch.manual_seed(0)
    dim, heads, (h, w) = 8, 2, (3, 4)
    memory = memory_of(((h, w),), dim, torch.float64)
    dense = build("dense", Slot(dim, heads)).double()
    with record(dense) as recording:
        expected = dense(memory.as_queries(), memory)
    deformable = MultiScaleDeformableAttention(Slot(dim, heads), points=h * w).double()
    _, _, value_weight = dense.mha.in_proj_weight.chunk(3)
    deformable.value_proj.weight.data.copy_(value_weight)
    deformable.output_proj.weight.data.copy_(dense.mha.out_proj.weight)
    # Every reference point is the corner of the map, and the offsets lead to each centre.
    centers = torch.stack(torch.meshgrid(torch.arange(w), torch.arange(h), indexing="xy"), -1).double() + 0.5
    deformable.sampling_offsets.bias.data.copy_(centers.reshape(1, -1, 2).expand(heads, -1, -1).flatten())
    queries = replace(memory.as_queries(), reference_points=torch.zeros(2, h * w, 2, dtype=torch.float64))
    assert not torch.allclose(deformable(queries, memory), expected, atol=1e-2)
    logits = recording[""][0]["weights"].log().permute(0, 2, 1, 3).flatten(2)  # (B, Q, M·K): softmax gives them back
    deformable.attention_weights = Given(logits)
    assert_close(deformable(queries, memory), expected, atol=1e-12, rtol=0)


class Given(torch.nn.Module):
    """Attention logits that do not come from a linear layer."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, _: Tensor) -> Tensor:
        return self.logits


def test_box_of_twice_the_points_is_a_point() -> None:
    """wh = 2K / (W, H) cancels K and the half box size: the offsets are pixels again."""
    points, (h, w) = 3, (5, 7)
    attention = perturbed(MultiScaleDeformableAttention(Slot(16, 4), points=points))
    memory = memory_of(((h, w),), 16)
    tokens, refs = torch.randn(2, 6, 16), torch.rand(2, 6, 2)
    boxes = torch.cat([refs, torch.tensor([2 * points / w, 2 * points / h]).expand(2, 6, 2)], -1)
    assert_close(attention(Queries(tokens, boxes), memory), attention(Queries(tokens, refs), memory), atol=2e-6, rtol=0)


def test_locations_by_hand() -> None:
    """ref · valid_ratio + Δ / (W, H), on a padded, non-square map."""
    attention = MultiScaleDeformableAttention(Slot(4, 1, levels=2), points=1)
    attention.sampling_offsets.bias.data.copy_(torch.tensor([1.0, -0.5, 0.25, 2.0]))
    masks = [torch.ones(1, 4, 8, dtype=torch.bool), torch.ones(1, 2, 5, dtype=torch.bool)]
    masks[0][:, :3, :4] = False
    masks[1][:, :1, :4] = False
    memory = Pyramid(torch.randn(1, 42, 4), Layout.from_masks(masks))
    with record(attention) as recording:
        attention(Queries(torch.randn(1, 1, 4), torch.tensor([[[0.5, 0.2]]])), memory)
    expected = [[0.5 * 4 / 8 + 1 / 8, 0.2 * 3 / 4 - 0.5 / 4], [0.5 * 4 / 5 + 0.25 / 5, 0.2 * 1 / 2 + 2 / 2]]
    assert_close(recording[""][0]["locations"].view(2, 2), torch.tensor(expected))


def test_queries_are_permutation_equivariant() -> None:
    attention, memory = perturbed(MultiScaleDeformableAttention(Slot(16, 4, 2, Role.DECODER))), memory_of(MAPS, 16)
    tokens, pos, refs = torch.randn(2, 9, 16), torch.randn(2, 9, 16), torch.rand(2, 9, 4)
    order = torch.randperm(9)
    expected = attention(Queries(tokens, refs, pos), memory)[:, order]
    assert_close(attention(Queries(tokens[:, order], refs[:, order], pos[:, order]), memory), expected)


def test_single_scale_is_multi_scale_with_one_level() -> None:
    several, one = perturbed(MultiScaleDeformableAttention(Slot(16, 4))), DeformableAttention(Slot(16, 4))
    one.load_state_dict(several.state_dict())
    memory = memory_of(MAPS[:1], 16)
    assert torch.equal(one(memory.as_queries(), memory), several(memory.as_queries(), memory))


@pytest.mark.parametrize("level", [0, 1])
def test_single_scale_samples_its_level_only(level: int) -> None:
    attention = perturbed(DeformableAttention(Slot(16, 4, levels=2), level=level))
    memory = memory_of(MAPS, 16)
    queries = memory.as_queries()
    lengths = memory.layout.tokens_per_level
    tokens = list(memory.tokens.split(lengths, 1))
    expected = attention(queries, memory)
    tokens[1 - level] = tokens[1 - level] + 1
    assert torch.equal(attention(queries, replace(memory, tokens=torch.cat(tokens, 1))), expected)
    tokens[level] = tokens[level] + 1
    assert not torch.allclose(attention(queries, replace(memory, tokens=torch.cat(tokens, 1))), expected)


@pytest.mark.parametrize("autocast", [False, True])
def test_coordinates_stay_in_float32(autocast: bool) -> None:
    """bfloat16 would misplace a point at the far end of a map of width 134 by a quarter of a pixel."""
    attention = perturbed(MultiScaleDeformableAttention(Slot(16, 4)), 0.1).bfloat16().float()  # exact in both
    memory = memory_of(((2, 134),), 16)
    memory = replace(memory, tokens=memory.tokens.bfloat16().float(), pos=None)
    with record(attention) as exact:
        attention(memory.as_queries(), memory)
    if not autocast:
        attention, memory = attention.bfloat16(), replace(memory, tokens=memory.tokens.bfloat16())
    with record(attention) as half, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = attention(memory.as_queries(), memory)
    assert output.dtype == torch.bfloat16
    assert torch.equal(half[""][0]["locations"], exact[""][0]["locations"])


def test_rejects_missing_reference_points() -> None:
    attention, memory = MultiScaleDeformableAttention(Slot(16, 4)), memory_of(MAPS[:1], 16)
    with pytest.raises(ValueError, match=r"needs reference points of shape \(B, Q, 2\) or \(B, Q, 4\), got None"):
        attention(Queries(torch.randn(2, 3, 16)), memory)
    with pytest.raises(ValueError, match=r"got shape \(2, 3, 3\)"):
        attention(Queries(torch.randn(2, 3, 16), torch.rand(2, 3, 3)), memory)


def test_rejects_a_wrong_number_of_levels() -> None:
    attention, memory = MultiScaleDeformableAttention(Slot(16, 4, levels=3)), memory_of(MAPS, 16)
    with pytest.raises(ValueError, match="expected 3 feature levels, got 2"):
        attention(memory.as_queries(), memory)


@pytest.mark.parametrize(
    ("name", "levels", "options", "message"),
    [
        ("ms_deform", 1, {"points": 0}, "points = 0: must be at least 1"),
        ("deform", 2, {}, "set level to 0 … 1"),
        ("deform", 2, {"level": 2}, "level = 2: must be in 0 … 1"),
        ("deform", 2, {"level": -1}, "level = -1"),
    ],
)
def test_rejects_options(name: str, levels: int, options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(name, Slot(16, 4, levels), **options)
