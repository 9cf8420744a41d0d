"""Deformable-DETR's `MSDeformAttn`: the module of models/ops/modules, on the operators of this package."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo.ops.compat import check_level_starts, level_shapes
from attnzoo.ops.ms_deform_attn.operator import ms_deform_attn_fused


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention (Zhu et al., Deformable DETR, arXiv:2010.04159, equation 3).

    Arguments, parameter names and initial values are those of Deformable-DETR's module: replace
    `from models.ops.modules import MSDeformAttn` by `from attnzoo.ops import MSDeformAttn`. Sampling locations are
    computed in float32 or higher. Raises ValueError if `n_heads` does not divide `d_model`.
    """

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model must be divisible by n_heads, but got {d_model} and {n_heads}")
        self.im2col_step = 64  # ignored: any batch size is supported
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        samples = n_heads * n_levels * n_points
        self.sampling_offsets = nn.Linear(d_model, samples * 2)
        self.attention_weights = nn.Linear(d_model, samples)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Head m samples in direction 2πm/M, point k at k + 1 pixels (max-norm); uniform weights."""
        angles = torch.arange(self.n_heads, dtype=torch.float32) * (2 * math.pi / self.n_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        offsets = directions[:, None, None] * torch.arange(1, self.n_points + 1)[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.n_levels, -1, -1).flatten())
        for zero in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(zero)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor,
        input_level_start_index: Tensor,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from `query` (B, Q, C) to `input_flatten` (B, S, C), the levels concatenated; returns (B, Q, C).

        - `reference_points`: (B, Q, L, 2) points or (B, Q, L, 4) boxes (cx, cy, w, h), in [0, 1] over each level's map
        - `input_spatial_shapes`: (L, 2) integers, h and w per level; a device synchronisation if on a GPU
        - `input_level_start_index`: (L,) integers, the first token of each level; levels must be consecutive
        - `input_padding_mask`: (B, S), True where a token is padding

        Raises TypeError or ValueError for invalid arguments.
        """
        shapes = level_shapes("input_spatial_shapes", input_spatial_shapes)
        check_level_starts("input_level_start_index", input_level_start_index, shapes)
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0)
        samples = (self.n_heads, self.n_levels, self.n_points)
        offsets = self._offsets(query).unflatten(-1, (*samples, 2))
        logits = self.attention_weights(query).unflatten(-1, samples)
        value = value.unflatten(-1, (self.n_heads, -1))
        return self.output_proj(
            ms_deform_attn_fused(value, shapes, reference_points.to(offsets.dtype), offsets, logits)
        )

    def _offsets(self, query: Tensor) -> Tensor:
        """In half precision, points would be off by up to a quarter of a pixel."""
        with torch.autocast(query.device.type, enabled=False):
            dtype = torch.promote_types(query.dtype, torch.float32)
            layer = self.sampling_offsets
            return F.linear(query.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))
