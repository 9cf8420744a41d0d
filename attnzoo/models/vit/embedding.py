"""Patch embedding and downsampling layers. Maps are (B, h, w, C), channels last."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """Convolution and LayerNorm; sizes that the stride does not divide are rounded up."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, stride: int, *, bias: bool = True):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        overlap = kernel > stride
        self.conv = nn.Conv2d(in_dim, out_dim, kernel, stride, padding=kernel // 2 if overlap else 0, bias=bias)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(x, "b h w c -> b c h w")
        if self.kernel == self.stride:
            x = F.pad(x, (0, _padding(x.shape[3], self.stride), 0, _padding(x.shape[2], self.stride)))
        return self.norm(rearrange(self.conv(x), "b c h w -> b h w c"))


class PatchEmbed(ConvNorm):
    """Linear projection of 4×4 patches (Swin, DAT)."""

    def __init__(self, dim: int):
        super().__init__(3, dim, kernel=4, stride=4)


class OverlapPatchEmbed(nn.Sequential):
    """Two 3×3 stride-2 convolutions (DAT++)."""

    def __init__(self, dim: int):
        half = dim // 2
        super().__init__(ConvNorm(3, half, kernel=3, stride=2), nn.GELU(), ConvNorm(half, dim, kernel=3, stride=2))


class PatchMerging(nn.Module):
    """Linear projection of concatenated 2×2 patches (Swin): (B, h, w, `in_dim`) to (B, ⌈h/2⌉, ⌈w/2⌉, `out_dim`)."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_dim)
        self.reduction = nn.Linear(4 * in_dim, out_dim, bias=False)
        nn.init.trunc_normal_(self.reduction.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, _padding(x.shape[2], 2), 0, _padding(x.shape[1], 2)))
        x = rearrange(x, "b (h row) (w column) c -> b h w (column row c)", row=2, column=2)  # order of Swin's weights
        return self.reduction(self.norm(x))


def _padding(size: int, stride: int) -> int:
    """Pixels to the next multiple of the stride; as -size % stride, in a form that torch.export simplifies."""
    return (size + stride - 1) // stride * stride - size


PATCH_EMBEDS = {"patch": PatchEmbed, "overlap": OverlapPatchEmbed}


def build_downsample(kind: str, in_dim: int, out_dim: int) -> nn.Module:
    """The 2× downsampling layer of VitConfig.downsample: "merge", "conv" or "overlap"."""
    if kind == "merge":
        return PatchMerging(in_dim, out_dim)
    return ConvNorm(in_dim, out_dim, kernel=2 if kind == "conv" else 3, stride=2, bias=False)
