"""Deformable attention, single- and multi-scale (Zhu et al., Deformable DETR, ICLR 2021, eq. 2 and 3)."""

import math
from dataclasses import replace
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from attnzoo import ops
from attnzoo.attention.base import Attention, linear_fp32, num_queries, register
from attnzoo.errors import UserError, plural
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot
from attnzoo.ops.ms_deform_attn import reference


@register("ms_deform")
class MultiScaleDeformableAttention(Attention):
    """Each query samples `points` locations per head and level, at predicted offsets from its reference point.

    Offsets and attention weights are linear projections of the query; there are no keys. Cost is linear in the number
    of tokens. Parameters are named as in the published checkpoints.
    """

    needs_reference_points: ClassVar[frozenset[Role]] = frozenset(Role)

    def __init__(self, slot: Slot, *, points: int = 4):
        super().__init__(slot)
        if points < 1:
            raise UserError(f"points = {points}: must be at least 1")
        self.points = points
        samples = slot.heads * slot.levels * points
        self.sampling_offsets = nn.Linear(slot.dim, samples * 2)
        self.attention_weights = nn.Linear(slot.dim, samples)
        self.value_proj = nn.Linear(slot.dim, slot.dim)
        self.output_proj = nn.Linear(slot.dim, slot.dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initial offsets: head m points in direction 2πm/M, point k at k + 1 pixels (max-norm); uniform weights."""
        angles = torch.arange(self.slot.heads, dtype=torch.float32) * (2 * math.pi / self.slot.heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        radii = torch.arange(1, self.points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * radii[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.slot.levels, -1, -1).flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        self.check_levels(memory.layout)
        query, shapes = queries.with_pos_embed(), memory.layout.spatial_shapes
        sizes = {"m": self.slot.heads, "l": self.slot.levels, "p": self.points}
        value = memory.layout.zero_padding(self.value_proj(memory.tokens))
        value = rearrange(value, "b s (m d) -> b s m d", m=self.slot.heads)
        # Half precision shifts sampling points by up to a quarter of a pixel.
        offsets = linear_fp32(self.sampling_offsets, query)
        offsets = rearrange(offsets, "b q (m l p xy) -> b q m l p xy", **sizes)
        reference_points = self._reference_points_per_level(queries, memory.layout, offsets.dtype)
        logits = rearrange(self.attention_weights(query), "b q (m l p) -> b q m l p", **sizes)
        if not self.recording:
            return self.output_proj(ops.ms_deform_attn_fused(value, shapes, reference_points, offsets, logits))
        weights = logits.flatten(-2).softmax(-1).view(logits.shape)
        locations = reference.sampling_locations(shapes, reference_points, offsets)
        self.record(weights=weights, locations=locations, reference_points=self.require_reference_points(queries))
        return self.output_proj(ops.ms_deform_attn(value, shapes, locations, weights))

    def _reference_points_per_level(self, queries: Queries, layout: Layout, dtype: torch.dtype) -> Tensor:
        """Reference points (B, Q, L, 2 or 4), normalised to the padded map of each level."""
        points, ratios = self.require_reference_points(queries), layout.valid_ratios[:, None]
        return points.to(dtype)[:, :, None] * (ratios if points.shape[-1] == 2 else torch.cat([ratios, ratios], -1))

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        q, dim = num_queries(queries), self.slot.dim
        samples = self.slot.heads * self.slot.levels * self.points
        projections = (q + memory.num_tokens) * dim**2 + q * dim * samples * 3
        # 4 multiply-accumulates per bilinear sample: the attention weight is folded into the coefficients
        return projections + q * self.slot.levels * self.points * dim * 4


@register("deform")
class DeformableAttention(MultiScaleDeformableAttention):
    """Single-scale deformable attention on `level`, which must be given if the memory has several."""

    def __init__(self, slot: Slot, *, points: int = 4, level: int | None = None):
        if level is None and slot.levels > 1:
            raise UserError(f"deform uses one of {plural(slot.levels, 'level')}: set level to 0 … {slot.levels - 1}")
        if level is not None and not 0 <= level < slot.levels:
            raise UserError(f"level = {level}: must be in 0 … {slot.levels - 1}")
        level = level or 0
        sizes = slot.map_sizes and (slot.map_sizes[level],)
        super().__init__(replace(slot, levels=1, map_sizes=sizes), points=points)
        self.level = level

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        return super().forward(queries, memory.level(self.level))

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        return super().flops(queries, memory.level(self.level))
