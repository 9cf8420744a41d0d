"""From images to the first map, and from each map to one of half its size. Maps are (B, h, w, C), channels last."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """A convolution of a map and a LayerNorm of its channels; sizes that do not divide are rounded up."""

    def __init__(self, dim: int, out: int, kernel: int, stride: int, *, bias: bool = True):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        overlap = kernel > stride
        self.conv = nn.Conv2d(dim, out, kernel, stride, padding=kernel // 2 if overlap else 0, bias=bias)
        self.norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        if self.kernel == self.stride:
            x = F.pad(x, (0, -x.shape[3] % self.stride, 0, -x.shape[2] % self.stride))
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class PatchEmbed(ConvNorm):
    """Patches of 4x4 pixels, each mapped linearly (Swin, DAT)."""

    def __init__(self, dim: int):
        super().__init__(3, dim, kernel=4, stride=4)


class OverlapPatchEmbed(nn.Sequential):
    """Two 3x3 convolutions of stride 2 (DAT++)."""

    def __init__(self, dim: int):
        half = dim // 2
        super().__init__(ConvNorm(3, half, kernel=3, stride=2), nn.GELU(), ConvNorm(half, dim, kernel=3, stride=2))


class PatchMerging(nn.Module):
    """Every 2x2 pixels concatenated and mapped linearly (Swin): (B, h, w, C) to (B, ⌈h/2⌉, ⌈w/2⌉, `out`)."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out, bias=False)
        nn.init.trunc_normal_(self.reduction.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        # in the order of the published weights: down first, then right
        corners = [x[:, row::2, column::2] for column in range(2) for row in range(2)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


PATCH_EMBEDS = {"patch": PatchEmbed, "overlap": OverlapPatchEmbed}


def build_downsample(kind: str, dim: int, out: int) -> nn.Module:
    """What halves a map of `dim` channels and gives it `out`: "merge", "conv" or "overlap", as VitConfig.down says."""
    if kind == "merge":
        return PatchMerging(dim, out)
    return ConvNorm(dim, out, kernel=2 if kind == "conv" else 3, stride=2, bias=False)
