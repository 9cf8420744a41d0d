"""From backbone maps to a pyramid of tokens of equal width."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid
from attnzoo.models.config import NeckConfig
from attnzoo.models.position import sine_position_embedding

GROUPS = 32  # fewer where they do not divide the channels


class Neck(nn.Module):
    """1×1 convolutions to `dim` channels, optionally a top-down pathway, C6, and level embeddings.

    C6 is a 3×3 stride-2 convolution on the last raw map. The position of a token is its sine embedding
    plus the embedding of its level, since pixels of different levels share coordinates (Deformable DETR,
    appendix A.4). `levels` is the number of levels made.

    Raises UserError for a `dim` that does not fit the sine embedding.
    """

    def __init__(self, config: NeckConfig, channels: Sequence[int], dim: int):
        super().__init__()
        if dim % 4:
            raise UserError(f"model.dim = {dim}: must be a multiple of 4, for sines and cosines of x and y")
        self.config, self.dim = config, dim
        self.projections = nn.ModuleList([self._projection(c, 1) for c in channels])
        self.c6 = self._projection(channels[-1], 3) if config.c6 else None
        self.smooth = nn.ModuleList([nn.Conv2d(dim, dim, 3, padding=1) for _ in channels]) if config.fpn else None
        self.num_levels = len(channels) + config.c6
        self.level_embedding = nn.Parameter(torch.randn(self.num_levels, dim)) if config.level_embedding else None

    def _projection(self, channels: int, kernel: int) -> nn.Sequential:
        convolution = nn.Conv2d(channels, self.dim, kernel, stride=2 if kernel == 3 else 1, padding=kernel // 2)
        if self.config.norm == "none":
            return nn.Sequential(convolution)
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        return nn.Sequential(convolution, nn.GroupNorm(math.gcd(GROUPS, self.dim), self.dim))

    def forward(self, maps: Sequence[Tensor], mask: Tensor | None) -> Pyramid:
        """The pyramid of maps [(B, Cᵢ, hᵢ, wᵢ)] of images with padding mask (B, H, W), True where padded."""
        levels = [project(m) for project, m in zip(self.projections, maps, strict=True)]
        if self.smooth is not None:
            levels = self._top_down(levels)
        if self.c6 is not None:
            levels.append(self.c6(maps[-1]))
        sizes = [level.shape[-2:] for level in levels]
        batch, device = len(levels[0]), levels[0].device
        if mask is None:
            masks = [torch.zeros(batch, *size, dtype=torch.bool, device=device) for size in sizes]
            layout = Layout.unpadded([(h, w) for h, w in sizes], batch, device)
        else:
            masks = [F.interpolate(mask[:, None].float(), size=size)[:, 0].bool() for size in sizes]
            layout = Layout.from_masks(masks)
        positions = []
        for index, level_mask in enumerate(masks):
            position = sine_position_embedding(level_mask, self.dim, self.config.position).flatten(1, 2)
            if self.level_embedding is not None:
                position = position + self.level_embedding[index]
            positions.append(position)
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
        return Pyramid(tokens, layout, torch.cat(positions, 1))

    def _top_down(self, levels: list[Tensor]) -> list[Tensor]:
        """Feature pyramid (Lin et al., CVPR 2017): each level plus the coarser ones, smoothed."""
        assert self.smooth is not None
        merged = [levels[-1]]
        for level in reversed(levels[:-1]):
            merged.insert(0, level + F.interpolate(merged[0], size=level.shape[-2:], mode="nearest"))
        return [smooth(level) for smooth, level in zip(self.smooth, merged, strict=True)]
