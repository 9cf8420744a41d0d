"""Deformable attention whose heads sample at the same locations, each with weights of its own.

As in Deformable DETR (Zhu et al. 2021, arXiv:2010.04159, eq. 3), but with 2LP instead of 2MLP channels of offsets:
out = W Σ_lp a_mlp v_m(φ_l(reference) + offset_lp).
"""

from torch import Tensor, nn

from attnzoo.attention.base import Attention, num_queries, register
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot
from attnzoo.ops import ms_deform_attn


@register("shared_offsets")
class SharedOffsetsAttention(Attention):
    """`points`: samples per level."""

    needs_reference_points = frozenset(Role)

    def __init__(self, slot: Slot, *, points: int = 4):
        super().__init__(slot)
        if points < 1:
            raise UserError(f"points = {points}: must be at least 1")
        self.points = points
        self.offsets = nn.Linear(slot.dim, slot.levels * points * 2)
        self.weights = nn.Linear(slot.dim, slot.heads * slot.levels * points)
        self.value = nn.Linear(slot.dim, slot.dim)
        self.output = nn.Linear(slot.dim, slot.dim)
        nn.init.zeros_(self.offsets.weight)  # the same offsets for all queries at first, up to two pixels
        nn.init.uniform_(self.offsets.bias, -2, 2)

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        layout, heads, levels = memory.layout, self.slot.heads, self.slot.levels
        references = self.require_reference_points(queries)  # (B, Q, 2), or boxes (B, Q, 4)
        content = queries.with_pos_embed()
        # Offsets in pixels of their level; (x, y) from 0 to 1 over each map, its padding included.
        offsets = self.offsets(content).unflatten(-1, (levels, self.points, 2)) / layout.sizes_wh[:, None]
        centres = references[:, :, None, :2] * layout.valid_ratios[:, None]  # (B, Q, L, 2)
        locations = (centres[:, :, :, None] + offsets)[:, :, None].expand(-1, -1, heads, -1, -1, -1)
        weights = self.weights(content).unflatten(-1, (heads, levels * self.points)).softmax(-1)
        weights = weights.unflatten(-1, (levels, self.points))
        if self.recording:
            self.record(weights=weights, locations=locations, reference_points=references)
        value = layout.zero_padding(self.value(memory.tokens)).unflatten(-1, (heads, -1))
        return self.output(ms_deform_attn(value, layout.spatial_shapes, locations, weights))

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        dim, samples = self.slot.dim, self.slot.levels * self.points
        per_query = dim * dim + dim * samples * (2 + self.slot.heads) + 4 * samples * dim
        return num_queries(queries) * per_query + memory.num_tokens * dim * dim
