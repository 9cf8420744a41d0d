"""DAT's published checkpoints: every tensor finds its place, with the shape it has there."""

import pytest
import torch
from torch import Tensor

from attnzoo import models
from attnzoo.errors import UserError
from attnzoo.interop import vit

COUNTS = {"dat_tiny": 219, "dat_small": 435, "dat_base": 435}  # tensors of the published checkpoints


def published(preset: str) -> dict[str, Tensor]:
    """A checkpoint as LeapLabTHU/DAT 566a593 saves it: names and shapes, written down from the publication."""
    base = preset == "dat_base"
    dims = [128, 256, 512, 1024] if base else [96, 192, 384, 768]
    depths = [2, 2, 6 if preset == "dat_tiny" else 18, 2]
    groups = [4, 8] if base else [3, 6]
    state: dict[str, Tensor] = {}

    def linear(name: str, out: int, into: int, *kernel: int, bias: bool = True) -> None:
        state[f"{name}.weight"] = torch.rand(out, into, *kernel)
        if bias:
            state[f"{name}.bias"] = torch.rand(out)

    def norm(name: str, dim: int) -> None:
        state[f"{name}.norm.weight"], state[f"{name}.norm.bias"] = torch.rand(dim), torch.rand(dim)

    linear("patch_proj.0", dims[0], 3, 4, 4)
    norm("patch_proj.1", dims[0])
    for stage, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
        heads, side = dim // 32, 56 // 2**stage
        for block in range(depth):
            name = f"stages.{stage}"
            norm(f"{name}.layer_norms.{2 * block}", dim)
            norm(f"{name}.layer_norms.{2 * block + 1}", dim)
            linear(f"{name}.mlps.{block}.chunk.linear1", 4 * dim, dim)
            linear(f"{name}.mlps.{block}.chunk.linear2", dim, 4 * dim)
            name = f"{name}.attns.{block}"
            if stage > 1 and block % 2:
                for part in "qkv":
                    linear(f"{name}.proj_{part}", dim, dim, 1, 1)
                linear(f"{name}.proj_out", dim, dim, 1, 1)
                channels, kernel = dim // groups[stage - 2], 9 - 2 * stage
                linear(f"{name}.conv_offset.0", channels, 1, kernel, kernel)
                norm(f"{name}.conv_offset.1", channels)
                linear(f"{name}.conv_offset.3", 2, channels, 1, 1, bias=False)
                state[f"{name}.rpe_table"] = torch.rand(heads, 2 * side - 1, 2 * side - 1)
            else:
                linear(f"{name}.proj_qkv", 3 * dim, dim)
                linear(f"{name}.proj_out", dim, dim)
                state[f"{name}.relative_position_bias_table"] = torch.rand(169, heads)
                state[f"{name}.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
                if block % 2:
                    state[f"{name}.attn_mask"] = torch.zeros((side // 7) ** 2, 49, 49)
        if stage < 3:
            linear(f"down_projs.{stage}.0", dims[stage + 1], dim, 2, 2, bias=False)
            norm(f"down_projs.{stage}.1", dims[stage + 1])
    norm("cls_norm", dims[-1])
    linear("cls_head", 1000, dims[-1])
    return state


@pytest.mark.parametrize("preset", COUNTS)
def test_every_tensor_finds_its_place(preset: str) -> None:
    state = published(preset)
    assert len(state) == COUNTS[preset]
    with torch.device("meta"):
        model = models.create(preset)
    model.load_state_dict(vit.dat_from_authors(state), assign=True)
    block = model.trunk.stages[2].blocks[1]
    assert torch.equal(block.attention.proj_k.weight, state["stages.2.attns.1.proj_k.weight"][:, :, 0, 0])
    assert torch.equal(block.norm2.weight, state["stages.2.layer_norms.3.norm.weight"])
    assert torch.equal(block.mlp.fc2.bias, state["stages.2.mlps.1.chunk.linear2.bias"])
    window = model.trunk.stages[2].blocks[0].attention
    assert torch.equal(window.proj.weight, state["stages.2.attns.0.proj_out.weight"])


def test_a_tensor_without_a_place_is_refused() -> None:
    with pytest.raises(UserError, match=r"no tensor 'aux_head\.weight'"):
        vit.dat_from_authors({**published("dat_tiny"), "aux_head.weight": torch.zeros(1)})
