"""Deformable attention, single- and multi-scale (Zhu et al., Deformable DETR, ICLR 2021, eq. 2 and 3)."""

import math
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from attnzoo import ops
from attnzoo.attention.base import Attention, count, full_precision, register
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Slot
from attnzoo.ops.ms_deform_attn import reference


@register("ms_deform")
class MultiScaleDeformableAttention(Attention):
    """Each query reads `points` sampled points per head and level, at learned offsets from its reference.

    Offsets and weights are linear in the query: there are no keys. Cost is linear in the number of tokens.
    Parameters are named as in the published checkpoints.
    """

    needs_refs: ClassVar[bool] = True

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
        """Heads look in M directions, point k at distance k + 1 (max-norm, pixels), with uniform weights."""
        angles = torch.arange(self.slot.heads, dtype=torch.float32) * (2 * math.pi / self.slot.heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        rings = torch.arange(1, self.points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * rings[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.slot.levels, -1, -1).flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        if memory.layout.levels != self.slot.levels:
            raise ValueError(f"built for {self.slot.levels} levels, but the memory has {memory.layout.levels}")
        asking = queries.positioned()
        value = self.value_proj(memory.tokens)
        if memory.layout.padding is not None:
            value = value.masked_fill(memory.layout.padding[..., None], 0)
        value = value.unflatten(-1, (self.slot.heads, -1))
        shapes = memory.layout.shapes
        # Half precision would move points by up to a quarter of a pixel.
        offsets = full_precision(self.sampling_offsets, asking)
        offsets = offsets.unflatten(-1, (self.slot.heads, self.slot.levels, self.points, 2))
        references = self._references(queries.refs, memory.layout, offsets.dtype)
        logits = self.attention_weights(asking).unflatten(-1, (self.slot.heads, self.slot.levels, self.points))
        if not self.traced:
            return self.output_proj(ops.ms_deform_attn_fused(value, shapes, references, offsets, logits))
        assert queries.refs is not None
        weights = logits.flatten(-2).softmax(-1).view(logits.shape)
        locations = reference.sampling_locations(shapes, references, offsets)
        self.trace(weights=weights, locations=locations, references=queries.refs)
        return self.output_proj(ops.ms_deform_attn(value, shapes, locations, weights))

    @staticmethod
    def _references(refs: Tensor | None, layout: Layout, dtype: torch.dtype) -> Tensor:
        """References (B, Q, L, 2 or 4) over the padded map of each level."""
        if refs is None or refs.shape[-1] not in (2, 4):
            given = "none" if refs is None else f"shape {tuple(refs.shape)}"
            raise ValueError(f"deformable attention needs references (B, Q, 2) or (B, Q, 4), got {given}")
        ratios = layout.valid_ratios[:, None]
        return refs.to(dtype)[:, :, None] * (ratios if refs.shape[-1] == 2 else torch.cat([ratios, ratios], -1))

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        asking, dim = count(queries), self.slot.dim
        samples = self.slot.heads * self.slot.levels * self.points
        projections = (asking + memory.tokens) * dim**2 + asking * dim * samples * 3
        # A bilinear sample is four corners, whose coefficients already hold the attention weight.
        return projections + asking * self.slot.levels * self.points * dim * 4


@register("deform")
class DeformableAttention(MultiScaleDeformableAttention):
    """Multi-scale deformable attention on one level: `level` says which, if the memory has several."""

    def __init__(self, slot: Slot, *, points: int = 4, level: int | None = None):
        if level is None and slot.levels > 1:
            raise UserError(f"deform attends one level and there are {slot.levels}: set level to 0 … {slot.levels - 1}")
        if level is not None and not 0 <= level < slot.levels:
            raise UserError(f"level = {level}: there are {slot.levels} levels, counted from 0")
        level = level or 0
        sizes = slot.map_sizes and (slot.map_sizes[level],)
        super().__init__(replace(slot, levels=1, map_sizes=sizes), points=points)
        self.level = level

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        return super().forward(queries, memory.level(self.level))

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        return super().flops(queries, memory.level(self.level))
