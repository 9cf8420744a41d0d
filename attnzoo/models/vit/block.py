"""The block of a hierarchical ViT: pre-norm attention and MLP."""

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import DropPath
from torch import Tensor, nn

from attnzoo.attention import Attention
from attnzoo.geometry import Layout, Pyramid
from attnzoo.models.vit.config import VitConfig


class DepthwiseConv(nn.Module):
    """Depthwise 3×3 convolution of a map given as tokens (B, S, C); padding is zeroed."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        if layout.padding_mask is not None:
            x = x.masked_fill(layout.padding_mask[..., None], 0)
        height, width = layout.spatial_shapes[0]
        x = rearrange(x, "b (h w) c -> b c h w", h=height, w=width)  # a view in channels_last format
        return rearrange(self.conv(x), "b c h w -> b (h w) c")


class Mlp(nn.Module):
    """Two linear layers with GELU, `dim` → `hidden_dim` → `dim`; no residual.

    `conv` adds a depthwise convolution with residual before the GELU (Xia et al., DAT++, 2023).
    """

    def __init__(self, dim: int, hidden_dim: int, dropout: float, conv: bool):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.conv = DepthwiseConv(hidden_dim) if conv else None
        self.fc2 = nn.Linear(hidden_dim, dim)
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
    """Learned scale per channel, initialised to `init_value` (Touvron et al., CaiT, ICCV 2021)."""

    def __init__(self, dim: int, init_value: float):
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Block(nn.Module):
    """Pre-norm self-attention over the tokens (B, S, C) of one map, then MLP.

    `drop_path` in [0, 1) is the stochastic depth rate of both residual branches.
    """

    def __init__(self, attention: Attention, config: VitConfig, drop_path: float):
        super().__init__()
        dim = attention.slot.dim
        self.local = DepthwiseConv(dim) if config.local_perception else None
        self.norm1 = nn.LayerNorm(dim)
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, round(config.mlp_ratio * dim), config.dropout, config.mlp_conv)
        init_value = config.layer_scale
        self.scale1 = nn.Identity() if init_value is None else LayerScale(dim, init_value)
        self.scale2 = nn.Identity() if init_value is None else LayerScale(dim, init_value)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        if self.local is not None:
            x = x + self.local(x, layout)
        memory = Pyramid(self.norm1(x), layout)
        x = x + self.drop_path(self.scale1(self.attention(memory.as_queries(), memory)))
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x), layout)))
