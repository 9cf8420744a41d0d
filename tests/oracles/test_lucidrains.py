"""DAT attention against the `deformable-attention` package, which uses an MLP position bias.

On square maps it computes the same with other positions: grid points and queries are at 2i / (n - 1) - 1, but maps are
sampled as if that were (2i + 1) / n - 1. The test sets references and raw offsets of attnzoo accordingly. The package's
offset network has no norm; its MLP has two hidden layers and no factor before the logarithm.
"""

from dataclasses import replace

import pytest
import torch
from deformable_attention import DeformableAttention2D
from torch import Tensor, nn
from torch.testing import assert_close

from attnzoo.attention import Attention, build
from attnzoo.attention.dat_bias import MlpBias, Positions
from attnzoo.geometry import Layout, Pyramid, Role, Slot

DIM, HEADS, SIDE = 32, 4, 12


class TheirOffsets(nn.Module):
    """Raw offsets from the key grid of attnzoo to the sampling points of the package."""

    def __init__(self, theirs: DeformableAttention2D):
        super().__init__()
        self.network = theirs.to_offsets

    def forward(self, maps: Tensor) -> Tensor:
        offsets = self.network(maps)
        side = offsets.shape[-1]
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        index = torch.stack([x, y]).to(offsets)
        ours, theirs = (2 * index + 1) / side - 1, 2 * (index + offsets) / (side - 1) - 1
        return (theirs - ours).flatten(2).transpose(1, 2)


class TheirBias(MlpBias):
    """The MLP of the package, on displacements in its units."""

    def __init__(self, theirs: DeformableAttention2D):
        nn.ModuleList.__init__(
            self, [layer if isinstance(layer, nn.Linear) else layer[0] for layer in theirs.rel_pos_bias.mlp]
        )

    def _scaled(self, positions: Positions) -> tuple[Tensor, Tensor]:
        return positions.queries, positions.keys

    def _layers(self) -> list[list[tuple[Tensor, Tensor]]]:
        return [[(layer.weight, layer.bias) for layer in self]]


def ungrouped(conv: nn.Conv2d) -> Tensor:
    """The weight (out, in) of a grouped 1×1 convolution."""
    return torch.block_diag(*conv.weight.flatten(1).chunk(conv.groups))


def ours_with_the_weights_of(theirs: DeformableAttention2D, groups: int) -> Attention:
    slot = Slot(DIM, HEADS, role=Role.STAGE)
    options = {"stride": 4, "kernel": 4, "groups": groups, "offset_range": "none", "bias": "mlp"}
    attention = build("dat", slot, **options).double()
    for projection, conv in (
        (attention.proj_q, theirs.to_q),
        (attention.proj_k, theirs.to_k),
        (attention.proj_v, theirs.to_v),
    ):
        projection.weight.data.copy_(ungrouped(conv))
        projection.bias.data.zero_()
    attention.proj_out.weight.data.copy_(theirs.to_out.weight.flatten(1))
    attention.proj_out.bias.data.copy_(theirs.to_out.bias)
    attention.conv_offset[0] = TheirOffsets(theirs)
    attention.rpe_table = TheirBias(theirs)
    return attention


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_outputs_and_gradients_agree(groups: int) -> None:
    torch.manual_seed(0)
    theirs = DeformableAttention2D(
        dim=DIM, dim_head=DIM // HEADS, heads=HEADS, offset_groups=groups, offset_kernel_size=4
    ).double()
    ours = ours_with_the_weights_of(theirs, groups)
    image = torch.randn(2, DIM, SIDE, SIDE, dtype=torch.float64, requires_grad=True)
    y, x = torch.meshgrid(torch.arange(SIDE).double(), torch.arange(SIDE).double(), indexing="ij")
    refs = torch.stack([x, y], -1).flatten(0, 1).div(SIDE - 1).expand(2, -1, -1)
    memory = Pyramid(image.flatten(2).transpose(1, 2), Layout.unpadded(((SIDE, SIDE),), 2))
    queries = replace(memory.as_queries(), reference_points=refs)
    output = ours(queries, memory).transpose(1, 2).unflatten(2, (SIDE, SIDE))
    expected = theirs(image)
    assert_close(output, expected, atol=1e-12, rtol=0)
    # Both use the same modules as offset network and MLP.
    shared = [image, *theirs.to_offsets.parameters(), *theirs.rel_pos_bias.parameters()]
    grad_output = torch.randn_like(expected)
    for actual, right in zip(*(torch.autograd.grad(o, shared, grad_output) for o in (output, expected)), strict=True):
        assert_close(actual, right, atol=1e-10, rtol=0)
