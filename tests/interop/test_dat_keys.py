"""DAT's published checkpoints: every tensor finds its place, with the shape it has there."""

import pytest
import torch
from torch import Tensor

from attnzoo import models
from attnzoo.errors import UserError
from attnzoo.interop import vit

# Tensors of the published checkpoints, beside indices and masks for DAT++: those differ with the version of natten.
COUNTS = {
    "dat_tiny": 219,
    "dat_small": 435,
    "dat_base": 435,
    "dat_pp_tiny": 589,
    "dat_pp_small": 589,
    "dat_pp_base": 589,
}
PLUS_DEPTHS = [2, 4, 18, 2]
PLUS_GROUPS = {"dat_pp_tiny": [1, 2, 4, 8], "dat_pp_small": [1, 2, 3, 6], "dat_pp_base": [2, 4, 8, 16]}
PLUS_WIDTHS = {"dat_pp_tiny": 64, "dat_pp_small": 96, "dat_pp_base": 128}


class Saved(dict[str, Tensor]):
    """A state dict to be, layer by layer."""

    def linear(self, name: str, out: int, into: int, *kernel: int, bias: bool = True) -> None:
        self[f"{name}.weight"] = torch.rand(out, into, *kernel)
        if bias:
            self[f"{name}.bias"] = torch.rand(out)

    def norm(self, name: str, dim: int) -> None:
        self[f"{name}.norm.weight"], self[f"{name}.norm.bias"] = torch.rand(dim), torch.rand(dim)

    def block_norms(self, stage: int, block: int, dim: int) -> None:
        for norm in (2 * block, 2 * block + 1):
            self.norm(f"stages.{stage}.layer_norms.{norm}", dim)

    def deformable(self, name: str, dim: int, groups: int, stage: int) -> None:
        for part in ("q", "k", "v", "out"):
            self.linear(f"{name}.proj_{part}", dim, dim, 1, 1)
        channels, kernel, side = dim // groups, 9 - 2 * stage, 56 // 2**stage
        self.linear(f"{name}.conv_offset.0", channels, 1, kernel, kernel)
        self.norm(f"{name}.conv_offset.1", channels)
        self.linear(f"{name}.conv_offset.3", 2, channels, 1, 1, bias=False)
        self[f"{name}.rpe_table"] = torch.rand(dim // 32, 2 * side - 1, 2 * side - 1)

    def head(self, dim: int) -> None:
        self.norm("cls_norm", dim)
        self.linear("cls_head", 1000, dim)


def published(preset: str) -> Saved:
    """A checkpoint of DAT as LeapLabTHU/DAT 566a593 saves it: names and shapes, written down from the publication."""
    base = preset == "dat_base"
    dims = [128, 256, 512, 1024] if base else [96, 192, 384, 768]
    depths = [2, 2, 6 if preset == "dat_tiny" else 18, 2]
    groups = [4, 8] if base else [3, 6]
    state = Saved()
    state.linear("patch_proj.0", dims[0], 3, 4, 4)
    state.norm("patch_proj.1", dims[0])
    for stage, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
        for block in range(depth):
            state.block_norms(stage, block, dim)
            state.linear(f"stages.{stage}.mlps.{block}.chunk.linear1", 4 * dim, dim)
            state.linear(f"stages.{stage}.mlps.{block}.chunk.linear2", dim, 4 * dim)
            name = f"stages.{stage}.attns.{block}"
            if stage > 1 and block % 2:
                state.deformable(name, dim, groups[stage - 2], stage)
                continue
            state.linear(f"{name}.proj_qkv", 3 * dim, dim)
            state.linear(f"{name}.proj_out", dim, dim)
            state[f"{name}.relative_position_bias_table"] = torch.rand(169, dim // 32)
            state[f"{name}.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
            if block % 2:
                state[f"{name}.attn_mask"] = torch.zeros((8 // 2**stage) ** 2, 49, 49)
        if stage < 3:
            state.linear(f"down_projs.{stage}.0", dims[stage + 1], dim, 2, 2, bias=False)
            state.norm(f"down_projs.{stage}.1", dims[stage + 1])
    state.head(dims[-1])
    return state


def published_plus(preset: str) -> Saved:
    """A checkpoint of DAT++ as LeapLabTHU/DAT 32173fc with natten 0.14.6 saves it."""
    dims = [PLUS_WIDTHS[preset] * 2**stage for stage in range(4)]
    state = Saved()
    state.linear("patch_proj.0", dims[0] // 2, 3, 3, 3)
    state.norm("patch_proj.1", dims[0] // 2)
    state.linear("patch_proj.3", dims[0], dims[0] // 2, 3, 3)
    state.norm("patch_proj.4", dims[0])
    for stage, (dim, depth) in enumerate(zip(dims, PLUS_DEPTHS, strict=True)):
        for block in range(depth):
            state.block_norms(stage, block, dim)
            state.linear(f"stages.{stage}.local_perception_units.{block}", dim, 1, 3, 3)
            state.linear(f"stages.{stage}.mlps.{block}.linear1.0", 4 * dim, dim, 1, 1)
            state.linear(f"stages.{stage}.mlps.{block}.linear2.0", dim, 4 * dim, 1, 1)
            state.linear(f"stages.{stage}.mlps.{block}.dwc", 4 * dim, 1, 3, 3)
            name = f"stages.{stage}.attns.{block}"
            if stage == 3 or block % 2:
                state.deformable(name, dim, PLUS_GROUPS[preset][stage], stage)
                continue
            state.linear(f"{name}.qkv", 3 * dim, dim)
            state.linear(f"{name}.proj", dim, dim)
            state[f"{name}.rpb"] = torch.rand(dim // 32, 13, 13)
        if stage < 3:
            state.linear(f"down_projs.{stage}.0", dims[stage + 1], dim, 3, 3, bias=False)
            state.norm(f"down_projs.{stage}.1", dims[stage + 1])
    state.head(dims[-1])
    return state


@pytest.mark.parametrize("preset", COUNTS)
def test_every_tensor_finds_its_place(preset: str) -> None:
    plus = preset in PLUS_WIDTHS
    state = published_plus(preset) if plus else published(preset)
    assert len(state) == COUNTS[preset]
    with torch.device("meta"):
        model = models.create(preset)
    model.load_state_dict(vit.dat_from_authors(state), assign=True)
    block = model.trunk.stages[2].blocks[1]
    assert torch.equal(block.attention.proj_k.weight, state["stages.2.attns.1.proj_k.weight"][:, :, 0, 0])
    assert torch.equal(block.norm2.weight, state["stages.2.layer_norms.3.norm.weight"])
    bias = "stages.2.mlps.1.linear2.0.bias" if plus else "stages.2.mlps.1.chunk.linear2.bias"
    assert torch.equal(block.mlp.fc2.bias, state[bias])
    local = model.trunk.stages[2].blocks[0]
    output = "stages.2.attns.0.proj.weight" if plus else "stages.2.attns.0.proj_out.weight"
    assert torch.equal(local.attention.proj.weight, state[output])
    if plus:
        assert torch.equal(local.local.conv.weight, state["stages.2.local_perception_units.0.weight"])
        assert torch.equal(local.mlp.conv.conv.bias, state["stages.2.mlps.0.dwc.bias"])


def test_a_tensor_without_a_place_is_refused() -> None:
    with pytest.raises(UserError, match=r"no tensor 'aux_head\.weight'"):
        vit.dat_from_authors({**published("dat_tiny"), "aux_head.weight": torch.zeros(1)})
