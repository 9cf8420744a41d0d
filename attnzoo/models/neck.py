"""The neck: from the backbone's feature maps to a pyramid of tokens."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid
from attnzoo.models.config import NeckConfig
from attnzoo.models.masks import resize_mask
from attnzoo.models.position import sine_position_embedding

MAX_GROUPS = 32


class Neck(nn.Module):
    """1×1 input projections to `dim` channels, optional FPN and C6, position and level embeddings.

    C6 is a 3×3 stride-2 convolution on the last backbone map. The position embedding of a token is a sine embedding
    plus the embedding of its level, since pixels of different levels share coordinates (Deformable DETR, appendix A.4).
    `num_levels` is the number of output levels.

    Raises UserError unless `dim` is divisible by 4, as the sine embedding requires.
    """

    def __init__(self, config: NeckConfig, channels: Sequence[int], dim: int):
        super().__init__()
        if dim % 4:
            raise UserError(f"model.dim = {dim}: must be divisible by 4 (sine position embedding)", key="model.dim")
        self.config, self.dim = config, dim
        self.projections = nn.ModuleList([self._input_proj(c, 1) for c in channels])
        self.c6 = self._input_proj(channels[-1], 3) if config.c6 else None
        self.smooth = nn.ModuleList([nn.Conv2d(dim, dim, 3, padding=1) for _ in channels]) if config.fpn else None
        self.num_levels = len(channels) + config.c6
        self.level_embedding = nn.Parameter(torch.randn(self.num_levels, dim)) if config.level_embedding else None

    def _input_proj(self, channels: int, kernel: int) -> nn.Sequential:
        conv = nn.Conv2d(channels, self.dim, kernel, stride=2 if kernel == 3 else 1, padding=kernel // 2)
        if self.config.norm == "none":
            return nn.Sequential(conv)
        nn.init.xavier_uniform_(conv.weight)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        return nn.Sequential(conv, nn.GroupNorm(_num_groups(self.dim), self.dim))

    def forward(self, feature_maps: Sequence[Tensor], mask: Tensor | None) -> Pyramid:
        """The pyramid of maps [(B, Cᵢ, hᵢ, wᵢ)] of images with padding mask (B, H, W), True where padded."""
        levels = [project(x) for project, x in zip(self.projections, feature_maps, strict=True)]
        if self.smooth is not None:
            levels = self._top_down(levels)
        if self.c6 is not None:
            levels.append(self.c6(feature_maps[-1]))
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        batch, device = levels[0].shape[0], levels[0].device
        if mask is None:
            masks = [torch.zeros(1, *size, dtype=torch.bool, device=device) for size in sizes]  # the same in all images
            layout = Layout.unpadded(sizes, batch, device)
        else:
            masks = [resize_mask(mask, *size) for size in sizes]
            layout = Layout.from_masks(masks)
        tokens = [rearrange(level, "b c h w -> b (h w) c") for level in levels]
        pos = [self._pos_embed(level_mask, index) for index, level_mask in enumerate(masks)]
        return Pyramid(torch.cat(tokens, 1), layout, torch.cat(pos, 1).expand(batch, -1, -1))

    def _pos_embed(self, mask: Tensor, level: int) -> Tensor:
        """Position and level embedding (B, h·w, dim) of a level with padding mask (B, h, w)."""
        sine = sine_position_embedding(mask, self.dim, self.config.position)
        # of the parameters' type, as after .half(), not that of the features, which autocast may have lowered
        pos = rearrange(sine, "b h w c -> b (h w) c").to(next(self.parameters()).dtype)
        return pos if self.level_embedding is None else pos + self.level_embedding[level]

    def _top_down(self, levels: list[Tensor]) -> list[Tensor]:
        """Top-down pathway of FPN (Lin et al., CVPR 2017): upsample and add coarser levels, then a 3×3 convolution."""
        assert self.smooth is not None
        merged = [levels[-1]]
        for level in reversed(levels[:-1]):
            merged.insert(0, level + F.interpolate(merged[0], size=level.shape[-2:], mode="nearest"))
        return [smooth(level) for smooth, level in zip(self.smooth, merged, strict=True)]


def _num_groups(dim: int) -> int:
    """gcd(32, dim), halved if groups had one channel: on a 1×1 map its normalised value would always be zero."""
    groups = math.gcd(MAX_GROUPS, dim)
    return groups if groups < dim else dim // 2
