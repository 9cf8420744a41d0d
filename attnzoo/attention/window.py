"""Window attention (Liu et al., Swin Transformer, ICCV 2021, section 3.2)."""

from typing import Literal

import torch
from torch import Tensor, nn

from attnzoo.attention.base import register
from attnzoo.attention.qkv import QkvAttention
from attnzoo.attention.window_grid import GridWindows
from attnzoo.attention.window_query import QueryWindows
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot


@register("window")
class WindowAttention(QkvAttention):
    """Self-attention within windows of each map; in the decoder, each query attends to the window around it.

    - `window`: window size in pixels
    - `shift`: cyclic shift in pixels, less than `window`, not in the decoder; "alternate" shifts every second layer by
      `window // 2`. Swin shifts windows of 7 pixels by 3, DAT by 4.
    - `bias`: learned relative position bias (eq. 4)
    - `dropout`: of the attention weights in training, in [0, 1)

    If all keys are masked, the output is the output bias. Parameters are named as in the published checkpoints.
    """

    needs_reference_points = frozenset({Role.DECODER})

    def __init__(
        self,
        slot: Slot,
        *,
        window: int = 7,
        shift: int | Literal["alternate"] = 0,
        bias: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__(slot, dropout)
        if window < 1:
            raise UserError(f"window = {window}: must be at least 1")
        if shift == "alternate":
            shift = window // 2 * (slot.layer % 2)
        if not 0 <= shift < window:
            raise UserError(f"shift = {shift}: must be at least 0 and below window = {window}")
        if slot.role == Role.DECODER and shift:
            raise UserError(f"shift = {shift}: not supported in the decoder, whose windows are centred on the queries")
        decoder = slot.role == Role.DECODER
        self.windows = QueryWindows(window, slot.levels) if decoder else GridWindows(window, shift)
        self.relative_position_bias_table: nn.Parameter | None = None
        if bias:
            table = torch.empty(self.windows.num_relative_positions, slot.heads)
            self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        self.check_levels(memory.layout)
        return self.proj(self.windows.attend(self, self.relative_position_bias_table, queries, memory))

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        return self.windows.flops(self.slot.dim, queries, memory)

    def extra_flops(self, queries: int | Layout, memory: Layout) -> int:
        return self.windows.extra_flops(self.slot.dim, memory)
