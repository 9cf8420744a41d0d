"""Deformable attention, single- and multi-scale (Zhu et al., Deformable DETR, ICLR 2021, eq. 2 and 3)."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from attnzoo import ops
from attnzoo.attention.base import Attention, linear_fp32, num_queries, register, statically_true
from attnzoo.errors import UserError, as_yaml, plural
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot
from attnzoo.ops import library
from attnzoo.ops.ms_deform_attn import reference

BORDER_TOLERANCE = 2**-10  # pixels
SAMPLING_COST = 8
"""Time of a multiply-accumulate of sampling over one of a matrix product; see docs/operators.md."""
HAS_CPU_KERNEL = library.has_kernel("cpu", "ms_deform_attn_fused")
Sampler = Callable[[Tensor], Tensor]


@register("ms_deform")
class MultiScaleDeformableAttention(Attention):
    """Each query samples `points` locations per head and level, at predicted offsets from its reference point.

    Offsets and attention weights are linear projections of the query; there are no keys. Cost is linear in the number
    of tokens. Parameters are named as in the published checkpoints.

    - `points`: per head and level
    - `offsets`: `learned`; `frozen`, the initial offsets as a buffer; `zero`, all points at the reference
    - `weights`: `learned`, or `uniform` over the points of all levels
    - `sampling`: `bilinear`, or `nearest`, which reads the pixel that contains the location, or zero outside the map.
      Nearest sampling passes no gradient to offsets and reference points, so it refuses learned offsets. To sample
      trained offsets so (RT-DETRv2, arXiv:2407.17140), set the attribute `sampling` of a trained attention.

    Fixed points that read one value per head need uniform weights: others would have no effect.

    Sampling is linear, so the values may be projected before or after it (Zhu et al., section 4.1: the cost is
    min(HWC², N_q K C²)). In the decoder, few queries are sampled from the memory and then projected where that is
    faster; the attribute `projects_after_sampling` fixes the order. Results are equal to rounding.
    """

    needs_reference_points = frozenset(Role)
    projects_after_sampling: bool | None = None  # None: where it is faster

    def __init__(
        self,
        slot: Slot,
        *,
        points: int = 4,
        offsets: Literal["learned", "frozen", "zero"] = "learned",
        weights: Literal["learned", "uniform"] = "learned",
        sampling: Literal["bilinear", "nearest"] = "bilinear",
    ):
        super().__init__(slot)
        if points < 1:
            raise UserError(f"points = {points}: must be at least 1")
        if sampling == "nearest" and offsets == "learned":
            raise UserError(
                "sampling = 'nearest' passes no gradient to offsets, so they cannot be learned: "
                "set offsets to frozen or zero, or sampling to bilinear"
            )
        if weights == "learned" and slot.levels == 1 and (offsets == "zero" or (offsets == "frozen" and points == 1)):
            raise UserError(
                f"offsets = {as_yaml(offsets)} with points = {points} on one level reads one value per head, "
                "so weights have no effect: set weights to uniform"
            )
        self.points, self.sampling = points, sampling
        samples = slot.heads * slot.levels * points
        self.sampling_offsets = nn.Linear(slot.dim, samples * 2) if offsets == "learned" else None
        self.attention_weights = nn.Linear(slot.dim, samples) if weights == "learned" else None
        self.value_proj = nn.Linear(slot.dim, slot.dim)
        self.output_proj = nn.Linear(slot.dim, slot.dim)
        self.frozen_offsets: Tensor | None
        self.register_buffer("frozen_offsets", self.initial_offsets() if offsets == "frozen" else None)
        self.depends_on_queries = self.sampling_offsets is not None or self.attention_weights is not None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initial offsets: head m points in direction 2πm/M, point k at k + 1 pixels (max-norm); uniform weights."""
        if self.sampling_offsets is not None:
            with torch.no_grad():
                self.sampling_offsets.bias.copy_(self.initial_offsets().flatten())
            nn.init.zeros_(self.sampling_offsets.weight)
        if self.attention_weights is not None:
            nn.init.zeros_(self.attention_weights.weight)
            nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def initial_offsets(self) -> Tensor:
        """Offsets before training in pixels, (M, L, P, 2), x before y: see `reset_parameters`."""
        angles = torch.arange(self.slot.heads, dtype=torch.float32) * (2 * math.pi / self.slot.heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        radii = torch.arange(1, self.points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * radii[:, None]
        return offsets.repeat(1, self.slot.levels, 1, 1)

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        self.check_levels(memory.layout)
        sample = self._sampler(queries, memory.layout)
        if self._is_projected_after_sampling(queries.tokens.shape[1], memory.layout):
            projection = self.value_proj
            values = sample_and_project(sample, memory, projection.weight, projection.bias, self.slot.heads)
            return self.output_proj(values)
        value = memory.layout.zero_padding(self.value_proj(memory.tokens))
        return self.output_proj(sample(rearrange(value, "b s (m d) -> b s m d", m=self.slot.heads)))

    def _sampler(self, queries: Queries, layout: Layout) -> Sampler:
        """The weighted sums of the samples of all heads, (B, Q, M·D), as a function of value (B, S, M or 1, D)."""
        query, shapes = queries.with_pos_embed(), layout.spatial_shapes
        offsets, logits = self._offsets(query), self._logits(query)
        reference_points = self._reference_points_per_level(queries, layout, offsets.dtype)
        if self.sampling == "bilinear" and not self.recording:
            return lambda value: ops.ms_deform_attn_fused(value, shapes, reference_points, offsets, logits)
        weights = logits.flatten(-2).softmax(-1).view(logits.shape)
        locations = reference.sampling_locations(shapes, reference_points, offsets)
        if self.sampling == "nearest":
            locations = _to_pixel_centers(locations.detach(), layout)
        if self.recording:
            self.record(weights=weights, locations=locations, reference_points=self.require_reference_points(queries))
        return lambda value: ops.ms_deform_attn(value, shapes, locations, weights)

    def _is_projected_after_sampling(self, queries: int, layout: Layout) -> bool:
        """Whether values are projected after sampling.

        It needs as many products per query as the usual order per token, but samples all channels for every head.
        Measured with the CPU kernels in single precision only: the usual order elsewhere, and in exported graphs,
        which other runtimes read. Operations on the meta device are counted as on the CPU.
        """
        if self.projects_after_sampling is not None or self.slot.role != Role.DECODER:
            return bool(self.projects_after_sampling)
        weight = self.value_proj.weight
        if weight.device.type not in ("cpu", "meta") or weight.dtype.itemsize < 4 or torch.is_autocast_enabled("cpu"):
            return False
        if not HAS_CPU_KERNEL or self.slot.dim % 4 or torch.compiler.is_exporting():
            return False
        sampled = 4 * queries * self.slot.heads * self.slot.levels * self.points
        return statically_true(layout.num_tokens * self.slot.dim > SAMPLING_COST * sampled)

    def _offsets(self, query: Tensor) -> Tensor:
        """(B, Q, M, L, P, 2), in float32 or higher: half precision shifts points by up to a quarter of a pixel."""
        sizes = {"m": self.slot.heads, "l": self.slot.levels, "p": self.points}
        if self.sampling_offsets is not None:
            offsets = linear_fp32(self.sampling_offsets, query)
            return rearrange(offsets, "b q (m l p xy) -> b q m l p xy", **sizes)
        dtype = torch.promote_types(query.dtype, torch.float32)
        if self.frozen_offsets is None:
            return query.new_zeros(*query.shape[:2], *sizes.values(), 2, dtype=dtype)
        return self.frozen_offsets.to(dtype).expand(*query.shape[:2], -1, -1, -1, -1)

    def _logits(self, query: Tensor) -> Tensor:
        """Logits of the attention weights, (B, Q, M, L, P)."""
        sizes = {"m": self.slot.heads, "l": self.slot.levels, "p": self.points}
        if self.attention_weights is None:
            return query.new_zeros(*query.shape[:2], *sizes.values())
        return rearrange(self.attention_weights(query), "b q (m l p) -> b q m l p", **sizes)

    def _reference_points_per_level(self, queries: Queries, layout: Layout, dtype: torch.dtype) -> Tensor:
        """Reference points (B, Q, L, 2 or 4), normalised to the padded map of each level."""
        points, ratios = self.require_reference_points(queries), layout.valid_ratios[:, None]
        return points.to(dtype)[:, :, None] * (ratios if points.shape[-1] == 2 else torch.cat([ratios, ratios], -1))

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        q, dim = num_queries(queries), self.slot.dim
        predicted = sum(p.out_features for p in (self.sampling_offsets, self.attention_weights) if p is not None)
        projections = (q + memory.num_tokens) * dim**2 + q * dim * predicted
        # 4 multiply-accumulates per bilinear sample: the attention weight is folded into the coefficients
        needed = 1 if self.sampling == "nearest" else 4
        return projections + q * self.slot.levels * self.points * dim * needed

    def extra_flops(self, queries: int | Layout, memory: Layout) -> int:
        """Negative if values are projected after sampling.

        Nearest sampling reads pixel centres bilinearly: 3 of the 4 pixels have the coefficient 0.
        """
        q, heads, dim = num_queries(queries), self.slot.heads, self.slot.dim
        samples = q * self.slot.levels * self.points  # of each head
        extra = 3 * samples * dim if self.sampling == "nearest" else 0
        if self._is_projected_after_sampling(q, memory):
            # `flops` has a product per token, and samples of dim / heads channels per head
            extra += (q - memory.num_tokens) * dim**2 + 4 * samples * (heads - 1) * dim
            extra += 4 * samples * heads * 4  # the sums of weights inside the map
        return extra


def _to_pixel_centers(locations: Tensor, layout: Layout) -> Tensor:
    """Locations (B, Q, M, L, P, 2) moved to the centre of the pixel that contains them, also outside the map.

    A bilinear sample at the centre of a pixel is its value, and zero from the first pixel outside the map on. Locations
    on the border of two pixels belong to the right or lower one, as do those within BORDER_TOLERANCE of it: rounding
    errors do not decide, though centres of a coarse level often lie on borders of a finer one.
    """
    sizes = layout.sizes_wh[:, None].to(locations.dtype)
    return ((locations * sizes + BORDER_TOLERANCE).floor() + 0.5) / sizes


def sample_and_project(sample: Sampler, memory: Pyramid, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    """Σ_k A_k (W x_k + b) as W Σ_k A_k x_k + b Σ_k A_k, of samples inside the valid map: (B, Q, C).

    `sample` maps a value (B, S, 1, D) that all heads share to the weighted sums (B, Q, M·D) of its samples.
    """
    tokens = memory.tokens
    samples = sample(memory.layout.zero_padding(tokens)[:, :, None]).unflatten(-1, (heads, -1))
    ones = memory.layout.zero_padding(tokens.new_ones(4).expand(*tokens.shape[:2], -1))  # four: a whole vector
    inside = sample(ones[:, :, None]).unflatten(-1, (heads, -1))[..., :1]
    head_weights = weight.unflatten(0, (heads, -1))
    projected = samples.flatten(0, 1).transpose(0, 1) @ head_weights.transpose(1, 2)  # (M, B·Q, D)
    output = projected.transpose(0, 1).unflatten(0, samples.shape[:2])
    return (output + inside * bias.unflatten(0, (heads, -1))).flatten(2)


@register("deform")
class DeformableAttention(MultiScaleDeformableAttention):
    """Single-scale deformable attention on `level`, which must be given if the memory has several.

    The other options are those of `ms_deform`.
    """

    def __init__(
        self,
        slot: Slot,
        *,
        points: int = 4,
        level: int | None = None,
        offsets: Literal["learned", "frozen", "zero"] = "learned",
        weights: Literal["learned", "uniform"] = "learned",
        sampling: Literal["bilinear", "nearest"] = "bilinear",
    ):
        if level is None and slot.levels > 1:
            raise UserError(f"deform uses one of {plural(slot.levels, 'level')}: set level to 0 … {slot.levels - 1}")
        if level is not None and not 0 <= level < slot.levels:
            raise UserError(f"level = {level}: must be in 0 … {slot.levels - 1}")
        level = level or 0
        sizes = slot.map_sizes and (slot.map_sizes[level],)
        slot = replace(slot, levels=1, map_sizes=sizes)
        super().__init__(slot, points=points, offsets=offsets, weights=weights, sampling=sampling)
        self.level = level

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        return super().forward(queries, memory.level(self.level))

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        return super().flops(queries, memory.level(self.level))

    def extra_flops(self, queries: int | Layout, memory: Layout) -> int:
        return super().extra_flops(queries, memory.level(self.level))
