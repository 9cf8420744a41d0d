"""DAT's attention: as published in both versions, and as its definition implies in ours."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.dat import PublishedAttention
from torch import Tensor, nn
from torch.testing import assert_close

from attnzoo import contract
from attnzoo.attention import Attention, build, record
from attnzoo.contract import Case
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot

MAP = (4, 5)


def perturbed(attention: Attention, scale: float = 0.3) -> Attention:
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale)
    return attention


def stage(shape: tuple[int, int] = MAP, heads: int = 4, dim: int = 16, **options: Any) -> Attention:
    torch.manual_seed(0)
    return perturbed(build("dat", Slot(dim, heads, role=Role.STAGE, map_sizes=(shape,)), **options)).double()


def map_of(shape: tuple[int, int], batch: int = 1, dim: int = 16, seed: int = 0) -> Pyramid:
    """A map in float64, its centres too."""
    layout = Layout.unpadded((shape,), batch)
    height, width = shape
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    centers = torch.stack([(x + 0.5) / width, (y + 0.5) / height], -1).flatten(0, 1)
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, layout.num_tokens, dim, generator=g, dtype=torch.float64)
    return Pyramid(tokens, replace(layout, centers=centers.expand(batch, -1, -1)))


def published_names(attention: Attention) -> dict[str, Tensor]:
    """Parameters of a single level by the names of the published checkpoints."""
    state = attention.state_dict()
    return {
        name.replace("conv_offset.0.", "conv_offset.").replace("rpe_table.0", "rpe_table"): state[name]
        for name in state
    }


PUBLISHED = [
    ("v1", {"stride": 1, "kernel": 3, "groups": 2}),
    ("v1", {"stride": 1, "kernel": 5, "groups": 1, "range_factor": 3.0}),
    ("v1", {"stride": 2, "kernel": 5, "groups": 4, "offset_range": "clamp"}),
    ("v1", {"stride": 1, "kernel": 3, "groups": 2, "bias": "none"}),
    ("v1", {"stride": 1, "kernel": 3, "groups": 2, "bias": "depthwise"}),
    ("v1", {"stride": 2, "kernel": 3, "groups": 2, "offsets": False}),
    ("v1", {"stride": 2, "kernel": 3, "groups": 2, "offset_conv": "full"}),
    ("v1", {"stride": 2, "kernel": 3, "groups": 2, "offset_conv": "grouped"}),
    ("v2", {"stride": 1, "kernel": 3, "groups": 2, "offset_range": "clamp"}),
    ("v2", {"stride": 2, "kernel": 5, "groups": 2, "offset_range": "clamp"}),
    ("v2", {"stride": 2, "kernel": 2, "groups": 1, "offset_range": "tanh"}),
    ("v2", {"stride": 1, "kernel": 3, "groups": 2, "offset_range": "clamp", "bias": "mlp"}),
    ("v2", {"stride": 2, "kernel": 3, "groups": 2, "bias": "depthwise"}),
    ("v2", {"stride": 2, "kernel": 3, "groups": 2, "bias": "none", "offsets": False}),
]


@pytest.mark.parametrize(("version", "options"), PUBLISHED, ids=lambda x: x if isinstance(x, str) else str(x))
def test_follows_the_published_versions(version: str, options: dict[str, Any]) -> None:
    attention, memory = stage(**options, convention=version), map_of(MAP)
    sizes = (4, options["groups"], options["stride"], options["kernel"])
    factor = options.get("range_factor", 2.0) if options.get("offset_range", "tanh") == "tanh" else None
    reference = PublishedAttention(version, published_names(attention), *sizes, factor, options.get("offsets", True))
    output = attention(memory.as_queries(), memory)
    expected = reference(memory.tokens[0].T.reshape(16, *MAP))
    assert_close(output[0], expected.flatten(1).T, atol=1e-11, rtol=0)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_published_tables_are_resized_for_other_maps(version: str) -> None:
    attention, memory = stage(stride=1, kernel=3, groups=2, convention=version), map_of((6, 3))
    reference = PublishedAttention(version, published_names(attention), 4, 2, 1, 3, 2.0, True)
    expected = reference(memory.tokens[0].T.reshape(16, 6, 3))
    assert_close(attention(memory.as_queries(), memory)[0], expected.flatten(1).T, atol=1e-11, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offsets", [False, True])
def test_zero_offsets_are_dense_attention_with_relative_bias(offsets: bool, dtype: torch.dtype) -> None:
    """Keys at every pixel centre, and the table read at whole cells."""
    shape, heads = (5, 7), 4
    attention = stage(shape, heads, stride=1, kernel=3, groups=2, offsets=offsets).to(dtype)
    if offsets:
        attention.conv_offset[0][3].weight.data.zero_()
    memory = map_of(shape, batch=2)
    memory = replace(memory, tokens=memory.tokens.to(dtype))
    q, k, v = (
        projection(memory.tokens).unflatten(-1, (heads, -1)).transpose(1, 2)
        for projection in (attention.proj_q, attention.proj_k, attention.proj_v)
    )
    y, x = (c.flatten() for c in torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij"))
    bias = attention.rpe_table[0][:, y[:, None] - y + 4, x[:, None] - x + 6]
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, bias)
    expected = attention.proj_out(expected.transpose(1, 2).flatten(2))
    exact = 1e-12 if dtype == torch.float64 else 1e-6
    assert_close(
        attention(memory.as_queries(), memory), expected, atol=exact * float(expected.detach().abs().max()), rtol=0
    )


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_published_zero_offsets_do_not_hit_pixel_centres(version: str) -> None:
    attention, memory = stage((14, 14), stride=1, kernel=3, convention=version), map_of((14, 14))
    attention.conv_offset[0][3].weight.data.zero_()
    with record(attention) as recording:
        attention(memory.as_queries(), memory)
    columns = recording[""][0]["locations"][0, :14, 0, 0] * 14 - 0.5
    first, last = {"v1": (6.5 / 14, 13 - 6.5 / 14), "v2": (0.5, 13.5)}[version]
    assert_close(columns[[0, -1]], torch.tensor([first, last], dtype=torch.float64))


def test_offsets_reach_as_far_as_their_range() -> None:
    """A factor of 2 is a whole step of the grid; a clamp ends at the outermost pixel centres."""
    memory = map_of((8, 12))
    reached = {}
    for kind in ("tanh", "clamp", "none"):
        attention = stage((8, 12), stride=2, kernel=3, offset_range=kind)
        for tensor in (attention.conv_offset[0][3].weight, attention.conv_offset[0][1].norm.weight):
            tensor.data.mul_(100)
        with record(attention) as recording:
            attention(memory.as_queries(), memory)
        reached[kind] = recording[""][0]["locations"][0, :, 0] * torch.tensor([12, 8]) - 0.5
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    grid = torch.stack([2 * x + 0.5, 2 * y + 0.5], -1).flatten(0, 1)
    assert_close((reached["tanh"] - grid).abs().max(), torch.tensor(2.0, dtype=torch.float64), atol=1e-3, rtol=0)
    edges = torch.tensor([11.0, 7.0], dtype=torch.float64)
    assert_close(reached["clamp"], reached["none"].clamp(torch.zeros(2, dtype=torch.float64), edges))
    assert (reached["none"].abs() > 20).all(1).any()


def test_tables_are_resized_for_maps_of_other_sizes() -> None:
    """A table that is linear in the displacement is the same fraction of the map on every map."""
    attention = stage((4, 5), stride=1, kernel=3)
    x, y = torch.linspace(-1, 1, 9).double(), torch.linspace(-1, 1, 7).double()
    attention.rpe_table[0].data.copy_((2 * x + y[:, None]).expand(4, -1, -1))
    for shape in ((4, 5), (9, 3), (6, 11)):
        memory = map_of(shape)
        with record(attention) as recording:
            attention(memory.as_queries(), memory)
        pixels = torch.tensor(shape[::-1]).double()
        keys = recording[""][0]["locations"][0, :, 0] * pixels - 0.5
        steps = ((memory.layout.centers[0] * pixels - 0.5)[:, None] - keys) / (pixels - 1)
        inside = (steps.abs() <= 1).all(-1)
        bias = recording[""][0]["bias"][0, 0]
        assert inside.float().mean() > 0.8
        assert_close(bias[inside], (2 * steps[..., 0] + steps[..., 1])[inside], atol=1e-6, rtol=0)


def test_key_grid_of_one_point_is_one_key() -> None:
    attention, memory = stage((3, 3), stride=4, kernel=5), map_of((3, 3))
    with record(attention) as recording:
        output = attention(memory.as_queries(), memory)
    assert recording[""][0]["weights"].shape == (1, 4, 9, 1)
    assert_close(output, output[:, :1].expand(-1, 9, -1))


def test_strides_and_kernels_by_default() -> None:
    attention = build("dat", Slot(16, 4, levels=4))
    assert [grid.stride for grid in attention.grids] == [8, 4, 2, 1]
    assert [network[0].kernel_size[0] for network in attention.conv_offset] == [9, 7, 5, 3]
    maps = ((40, 52), (20, 26), (10, 13), (5, 7))
    assert [grid.output_shape(shape) for grid, shape in zip(attention.grids, maps, strict=True)] == [(5, 7)] * 4


def test_groups_sample_keys_at_their_own_positions() -> None:
    attention, memory = stage(groups=2, stride=1, kernel=3), map_of(MAP)
    with record(attention) as recording:
        attention(memory.as_queries(), memory)
    first, second = recording[""][0]["locations"].unbind(2)
    assert not torch.allclose(first, second, atol=1e-2)


def test_all_levels_share_one_softmax() -> None:
    attention = perturbed(build("dat", Slot(16, 4, levels=2)))
    layout = Layout.unpadded(((5, 7), (3, 4)), 2)
    memory = Pyramid(torch.randn(2, 47, 16), layout)
    with record(attention) as recording:
        attention(memory.as_queries(), memory)
    weights = recording[""][0]["weights"]
    assert weights.shape == (2, 4, 47, 12 + 12)
    assert_close(weights.sum(-1), torch.ones(2, 4, 47))
    assert (weights[..., :12].sum(-1) - 0.5).abs().max() < 0.5


def test_parameters_have_the_published_names() -> None:
    names = set(published_names(stage()))
    assert names == {
        *(f"proj_{role}.{kind}" for role in ("q", "k", "v", "out") for kind in ("weight", "bias")),
        *(f"conv_offset.{part}" for part in ("0.weight", "0.bias", "1.norm.weight", "1.norm.bias", "3.weight")),
        "rpe_table",
    }


@pytest.mark.parametrize(
    ("offset_conv", "groups", "weights"),
    [
        ("depthwise", 1, 16 * 9),
        ("grouped", 1, 2 * 8 * 8 * 9),
        ("full", 1, 16 * 16 * 9),
        ("depthwise", 2, 8 * 9),
        ("grouped", 2, 2 * 4 * 4 * 9),
        ("full", 2, 8 * 8 * 9),
    ],
)
def test_weights_of_the_offset_convolution(offset_conv: str, groups: int, weights: int) -> None:
    """The network of a group has dim / groups channels; all groups share it."""
    attention = stage(groups=groups, kernel=3, offset_conv=offset_conv)
    assert attention.conv_offset[0][0].weight.numel() == weights
    assert attention.conv_offset[0][3].weight.numel() == 2 * 16 // groups


def test_weights_of_three_convolutions_from_16_to_32_channels() -> None:
    """3 × 3: depthwise and 1 × 1 needs a seventh of a full convolution, two groups need half."""

    def count(*convs: nn.Conv2d) -> int:
        return sum(conv.weight.numel() for conv in convs)

    assert count(nn.Conv2d(16, 32, 3)) == 4608
    assert count(nn.Conv2d(16, 32, 3, groups=2)) == 2304
    assert count(nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 32, 1)) == 656


OPTIONS = (
    (("bias", "mlp"), ("groups", 2)),
    (("bias", "none"), ("offset_range", "none")),
    (("bias", "depthwise"), ("groups", 4)),
    (("offsets", False),),
    (("convention", "v1"), ("groups", 2)),
    (("convention", "v2"), ("offset_range", "clamp"), ("groups", 2)),
)
CLAUSES = ("gradients", "padding_is_ignored", "padded_equals_unpadded", "all_padded", "other_image", "flops", "record",
           "precision", "map_sizes", "meta_device")  # fmt: skip


def option_cases() -> Iterator[Any]:
    """Conventions affect geometry only, so gradients are checked with the other options."""
    for options, role, clause in itertools.product(OPTIONS, Role, CLAUSES):
        if role == Role.DECODER and ("bias", "depthwise") in options:
            continue
        if clause == "gradients" and options[0][0] == "convention":
            continue
        case = Case("dat", role, options)
        yield pytest.param(case, clause, id=f"{clause}-{case}")


@pytest.mark.parametrize(("case", "clause"), list(option_cases()))
def test_contract_with_options(case: Case, clause: str) -> None:
    contract.CLAUSES[clause](case)


def test_pooled_keys_ignore_padding() -> None:
    """Averages of windows that reach into padding are not attended."""
    attention = stage(stride=2, offsets=False, bias="none", convention="v2").float()
    mask = torch.ones(1, 6, 8, dtype=torch.bool)
    mask[:, :5, :6] = False
    layout = Layout.from_masks([mask])
    tokens = torch.randn(1, 48, 16)
    alone = Pyramid(tokens[~layout.padding_mask][None], Layout.unpadded([(5, 6)], 1))
    padded = Pyramid(tokens, layout)
    expected = attention(alone.as_queries(), alone)
    assert_close(attention(padded.as_queries(), padded)[~layout.padding_mask][None], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "groups = 3: must divide heads = 4"),
        ({"groups": 0}, "groups = 0"),
        ({"stride": 0}, "stride = 0: must be at least 1"),
        ({"stride": [1, 2, 4]}, r"stride = \[1, 2, 4\]: expected an int or a list of 2 ints"),
        ({"kernel": [3, -1]}, "kernel = .*must be at least 1"),
        ({"range_factor": 0}, "range_factor = 0: must be positive"),
        ({"mlp_dim": 0}, "mlp_dim = 0: must be at least 1"),
        ({"table_size": [[7, 7]]}, "table_size has 1 entry for 2 levels"),
        ({"table_size": [[7, 7], [0, 3]]}, "table_size = .*must be at least 1"),
        ({"bias": "cosine"}, "bias = 'cosine': expected 'table' | 'mlp' | 'depthwise' | 'none'"),
        ({"offset_range": "sigmoid"}, "offset_range"),
        ({"convention": "v3"}, "convention"),
        ({"convention": "v2", "offsets": False}, "bias = 'table': convention v2 with offsets: false supports only"),
        ({"bias": "depthwise"}, "object queries do not form a map"),
        ({"strides": 2}, "has no option 'strides'; did you mean 'stride'|has no option 'strides'"),
    ],
)
def test_rejects_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("dat", Slot(16, 4, 2, Role.DECODER), **options)


def test_two_groups_need_an_even_number_of_channels() -> None:
    with pytest.raises(UserError, match=r"offset_conv = 'grouped': two groups must divide dim / groups = 3"):
        build("dat", Slot(6, 2), groups=2, offset_conv="grouped")


def test_rejects_a_map_smaller_than_a_kernel_without_padding() -> None:
    attention, memory = stage(stride=4, kernel=4), map_of((3, 9))
    with pytest.raises(ValueError, match=r"kernel size 4 without padding is larger than the feature map \(3, 9\)"):
        attention(memory.as_queries(), memory)


def test_rejects_a_wrong_number_of_levels_and_missing_reference_points() -> None:
    attention, memory = stage(), map_of(MAP)
    with pytest.raises(ValueError, match=r"needs reference points of shape \(B, Q, 2\) or \(B, Q, 4\), got None"):
        attention(Queries(memory.tokens), memory)
    with pytest.raises(ValueError, match="expected 2 feature levels, got 1"):
        build("dat", Slot(16, 4, levels=2)).double()(memory.as_queries(), memory)
