"""Random state dicts with the names and shapes of the checkpoints of LeapLabTHU/DAT, from the publications."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """A model of either version; `window` is the side of windows, or of neighborhoods, `side` that of the first map."""

    dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    groups: tuple[int, ...] = (0, 0, 3, 6)
    head_dim: int = 32
    window: int = 7
    side: int = 56
    classes: int = 1000

    def heads(self, stage: int) -> int:
        return self.dims[stage] // self.head_dim

    def map_side(self, stage: int) -> int:
        return self.side // 2**stage


_BASE = Sizes(dims=(128, 256, 512, 1024), depths=(2, 2, 18, 2), groups=(0, 0, 4, 8))
_PLUS = Sizes(dims=(64, 128, 256, 512), depths=(2, 4, 18, 2), groups=(1, 2, 4, 8))
DAT = {
    "dat_tiny": Sizes(),
    "dat_small": Sizes(depths=(2, 2, 18, 2)),
    "dat_base": _BASE,
}
DAT_PLUS = {
    "dat_pp_tiny": _PLUS,
    "dat_pp_small": replace(_PLUS, dims=(96, 192, 384, 768), groups=(1, 2, 3, 6)),
    "dat_pp_base": replace(_PLUS, dims=(128, 256, 512, 1024), groups=(2, 4, 8, 16)),
}


class RandomState(dict[str, Tensor]):
    """A state dict of random numbers, filled layer by layer."""

    def linear(self, name: str, out_dim: int, in_dim: int, *kernel: int, bias: bool = True) -> None:
        self[f"{name}.weight"] = torch.rand(out_dim, in_dim, *kernel) - 0.5
        if bias:
            self[f"{name}.bias"] = torch.rand(out_dim) - 0.5

    def norm(self, name: str, dim: int) -> None:
        self[f"{name}.norm.weight"], self[f"{name}.norm.bias"] = torch.rand(dim), torch.rand(dim)

    def block_norms(self, stage: int, block: int, dim: int) -> None:
        for norm in (2 * block, 2 * block + 1):
            self.norm(f"stages.{stage}.layer_norms.{norm}", dim)

    def deformable(self, name: str, stage: int, sizes: Sizes) -> None:
        dim, kernel, side = sizes.dims[stage], 9 - 2 * stage, sizes.map_side(stage)
        for part in ("q", "k", "v", "out"):
            self.linear(f"{name}.proj_{part}", dim, dim, 1, 1)
        channels = dim // sizes.groups[stage]
        self.linear(f"{name}.conv_offset.0", channels, 1, kernel, kernel)
        self.norm(f"{name}.conv_offset.1", channels)
        self.linear(f"{name}.conv_offset.3", 2, channels, 1, 1, bias=False)
        self[f"{name}.rpe_table"] = torch.rand(sizes.heads(stage), 2 * side - 1, 2 * side - 1)

    def head(self, sizes: Sizes) -> None:
        self.norm("cls_norm", sizes.dims[-1])
        self.linear("cls_head", sizes.classes, sizes.dims[-1])


def published(sizes: Sizes) -> RandomState:
    """A checkpoint of DAT (CVPR 2022) as of commit 566a593."""
    dims, state = sizes.dims, RandomState()
    state.linear("patch_proj.0", dims[0], 3, 4, 4)
    state.norm("patch_proj.1", dims[0])
    for stage, (dim, depth) in enumerate(zip(dims, sizes.depths, strict=True)):
        for block in range(depth):
            state.block_norms(stage, block, dim)
            state.linear(f"stages.{stage}.mlps.{block}.chunk.linear1", 4 * dim, dim)
            state.linear(f"stages.{stage}.mlps.{block}.chunk.linear2", dim, 4 * dim)
            name = f"stages.{stage}.attns.{block}"
            if stage > 1 and block % 2:
                state.deformable(name, stage, sizes)
                continue
            state.linear(f"{name}.proj_qkv", 3 * dim, dim)
            state.linear(f"{name}.proj_out", dim, dim)
            pixels = sizes.window**2
            state[f"{name}.relative_position_bias_table"] = torch.rand((2 * sizes.window - 1) ** 2, sizes.heads(stage))
            state[f"{name}.relative_position_index"] = torch.zeros(pixels, pixels, dtype=torch.long)
            if block % 2:
                windows = sizes.map_side(stage) // sizes.window
                state[f"{name}.attn_mask"] = torch.zeros(windows**2, pixels, pixels)
        if stage < 3:
            state.linear(f"down_projs.{stage}.0", dims[stage + 1], dim, 2, 2, bias=False)
            state.norm(f"down_projs.{stage}.1", dims[stage + 1])
    state.head(sizes)
    return state


def published_plus(sizes: Sizes) -> RandomState:
    """A checkpoint of DAT++ as of commit 32173fc, with natten 0.14.6; its indices, which differ with that, left out."""
    dims, state = sizes.dims, RandomState()
    state.linear("patch_proj.0", dims[0] // 2, 3, 3, 3)
    state.norm("patch_proj.1", dims[0] // 2)
    state.linear("patch_proj.3", dims[0], dims[0] // 2, 3, 3)
    state.norm("patch_proj.4", dims[0])
    for stage, (dim, depth) in enumerate(zip(dims, sizes.depths, strict=True)):
        for block in range(depth):
            state.block_norms(stage, block, dim)
            state.linear(f"stages.{stage}.local_perception_units.{block}", dim, 1, 3, 3)
            state.linear(f"stages.{stage}.mlps.{block}.linear1.0", 4 * dim, dim, 1, 1)
            state.linear(f"stages.{stage}.mlps.{block}.linear2.0", dim, 4 * dim, 1, 1)
            state.linear(f"stages.{stage}.mlps.{block}.dwc", 4 * dim, 1, 3, 3)
            name = f"stages.{stage}.attns.{block}"
            if stage == 3 or block % 2:
                state.deformable(name, stage, sizes)
                continue
            state.linear(f"{name}.qkv", 3 * dim, dim)
            state.linear(f"{name}.proj", dim, dim)
            span = 2 * sizes.window - 1
            state[f"{name}.rpb"] = torch.rand(sizes.heads(stage), span, span)
        if stage < 3:
            state.linear(f"down_projs.{stage}.0", dims[stage + 1], dim, 3, 3, bias=False)
            state.norm(f"down_projs.{stage}.1", dims[stage + 1])
    state.head(sizes)
    return state
