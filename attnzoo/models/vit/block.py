"""The block of a hierarchical vision transformer: attention and feed-forward network, each normalised before."""

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from attnzoo.attention import Attention
from attnzoo.geometry import Layout, Pyramid
from attnzoo.models.vit.config import VitConfig


class DepthwiseConv(nn.Module):
    """A 3x3 convolution of each channel of a map, given as tokens (B, S, C); padding counts as zero."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        if layout.padding_mask is not None:
            x = x.masked_fill(layout.padding_mask[..., None], 0)
        # a map of tokens is an image whose channels lie last in memory: nothing is copied
        x = x.unflatten(1, layout.spatial_shapes[0]).permute(0, 3, 1, 2)
        return self.conv(x).flatten(2).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with GELU between, `dim` → `hidden` → `dim`, before the residual.

    `conv`: the hidden map plus its depthwise convolution goes into the GELU (Xia et al., DAT++, 2023).
    """

    def __init__(self, dim: int, hidden: int, dropout: float, conv: bool):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.conv = DepthwiseConv(hidden) if conv else None
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x = self.fc1(x)
        if self.conv is not None:
            x = x + self.conv(x, layout)
        return self.dropout(self.fc2(self.dropout(F.gelu(x))))


class LayerScale(nn.Module):
    """A learned factor per channel, `initial` at first (Touvron et al., CaiT, ICCV 2021)."""

    def __init__(self, dim: int, initial: float):
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Block(nn.Module):
    """Tokens (B, S, C) of one map attend to each other, then the feed-forward network.

    `drop_path` in [0, 1): the share of images for which each of the two branches is left out in training.
    """

    def __init__(self, attention: Attention, config: VitConfig, drop_path: float):
        super().__init__()
        dim = attention.slot.dim
        self.local = DepthwiseConv(dim) if config.local_perception else None
        self.norm1 = nn.LayerNorm(dim)
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, round(config.mlp_ratio * dim), config.dropout, config.mlp_conv)
        initial = config.layer_scale
        self.scale1, self.scale2 = (nn.Identity() if initial is None else LayerScale(dim, initial) for _ in range(2))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        if self.local is not None:
            x = x + self.local(x, layout)
        memory = Pyramid(self.norm1(x), layout)
        x = x + self.drop_path(self.scale1(self.attention(memory.as_queries(), memory)))
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x), layout)))
