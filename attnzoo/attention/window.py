"""Attention within windows of a map (Liu et al., Swin Transformer, ICCV 2021, section 3.2)."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo.attention.base import Attention, count, register
from attnzoo.attention.partition import Partition
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot


@register("window")
class WindowAttention(Attention):
    """Tokens of a map attend within their window; object queries attend to the window around their reference.

    `window`: its side in pixels. `shift`: by how many pixels, fewer than `window`, the windows are moved down and
    right; "alternate" moves those of every second layer by half a window. Swin moves 7-pixel windows by 3, DAT by 4. A
    map that is a single window along an axis is not cut along it. `bias`: a learned bias for each displacement within a
    window (eq. 4). `dropout` in [0, 1) falls on the attention weights in training.

    Each level is cut on its own, with the same projections and biases. Objects attend to all levels jointly, to the
    `window` x `window` pixels around the one nearest their reference, with biases per level. Where nothing can be
    attended the result is the output bias.

    Cost: 4SC² for projections and 2SNC for windows of N pixels. Parameters are named as in the published checkpoints.
    """

    needs_refs: ClassVar[bool] = True

    def __init__(
        self,
        slot: Slot,
        *,
        window: int = 7,
        shift: int | Literal["alternate"] = 0,
        bias: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__(slot)
        if window < 1:
            raise UserError(f"window = {window}: must be at least 1")
        if shift == "alternate":
            shift = window // 2 * (slot.layer % 2)
        if not 0 <= shift < window:
            raise UserError(f"shift = {shift}: must be at least 0 and below window = {window}")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout = {dropout}: must be in [0, 1)")
        if slot.role == Role.DECODER and shift:
            raise UserError(f"shift = {shift}: the windows of object queries lie around their references")
        self.window, self.shift, self.dropout = window, shift, dropout
        self.qkv = nn.Linear(slot.dim, 3 * slot.dim)
        self.proj = nn.Linear(slot.dim, slot.dim)
        entries = slot.levels * window**2 if slot.role == Role.DECODER else (2 * window - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.zeros(entries, slot.heads)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with deviation 0.02, biases of linear layers zero."""
        for linear in (self.qkv, self.proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if self.relative_position_bias_table is not None:
            nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        if memory.layout.levels != self.slot.levels:
            raise ValueError(f"built for {self.slot.levels} levels, but the memory has {memory.layout.levels}")
        if queries.refs is None:
            raise ValueError("window attention needs references (B, Q, 2) or (B, Q, 4)")
        if self.slot.role == Role.DECODER:
            heads = self._around(queries, queries.refs, memory)
        else:
            heads = self._within(queries.refs, memory)
        return self.proj(heads)

    def _within(self, refs: Tensor, memory: Pyramid) -> Tensor:
        """Every token of the memory attends to its window: (B, S, C)."""
        outputs, weights, locations = [], [], []
        for index in range(self.slot.levels):
            level = memory.level(index)
            cut = Partition(level.layout, self.window, self.shift)
            heads, attended = self._attend(*self._project(level, cut), self._square_bias(), cut.mask)
            outputs.append(cut.merge(heads.transpose(2, 3).flatten(3)))
            if self.traced:
                weights.append(cut.merge(attended.transpose(2, 3).flatten(3)).unflatten(-1, (self.slot.heads, -1)))
                locations.append(_keys_of_windows(level.layout, cut))
        if self.traced:
            self.trace(weights=torch.cat(weights, 1), locations=torch.cat(locations, 1), references=refs)
        return torch.cat(outputs, 1)

    def _project(self, memory: Pyramid, cut: Partition) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, windows, M, N, C/M) of one level."""
        values = cut.split(memory.tokens)
        if memory.pos is None:
            q, k, v = self.qkv(values).chunk(3, -1)
        else:
            asking = values + cut.split(memory.pos)
            weights, biases = self.qkv.weight.split(2 * self.slot.dim), self.qkv.bias.split(2 * self.slot.dim)
            q, k = F.linear(asking, weights[0], biases[0]).chunk(2, -1)
            v = F.linear(values, weights[1], biases[1])
        q, k, v = (x.unflatten(-1, (self.slot.heads, -1)).transpose(2, 3) for x in (q, k, v))
        return q, k, v

    def _square_bias(self) -> Tensor | None:
        """The bias (M, N, N) between the pixels of a window: entry (Δy + w - 1)(2w - 1) + Δx + w - 1 of the table."""
        if self.relative_position_bias_table is None:
            return None
        side = torch.arange(self.window, device=self.relative_position_bias_table.device)
        apart = side[:, None] - side + self.window - 1  # (from, to)
        index = apart[:, None, :, None] * (2 * self.window - 1) + apart[:, None, :]
        square = self.relative_position_bias_table[index.flatten()].unflatten(0, (self.window**2, self.window**2))
        return square.permute(2, 0, 1)

    def _around(self, queries: Queries, refs: Tensor, memory: Pyramid) -> Tensor:
        """Every object attends to the pixels around its reference: (B, Q, C)."""
        weights, biases = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        given = (queries.positioned(), memory.positioned(), memory.tokens)
        q, k, v = (F.linear(x, weight, bias) for x, weight, bias in zip(given, weights, biases, strict=True))
        index, seen = self._pixels_around(refs, memory.layout)
        k, v = (_rows(x, index).unflatten(-1, (self.slot.heads, -1)).transpose(2, 3) for x in (k, v))
        table = self.relative_position_bias_table
        bias = None if table is None else table.T[:, None, :]
        q = q.unflatten(-1, (self.slot.heads, 1, -1))
        heads, attended = self._attend(q, k, v, bias, seen[:, :, None, None, :])
        if self.traced:
            locations = _rows(_centers(memory.layout), index)
            self.trace(weights=attended.squeeze(3), locations=locations, references=refs)
        return heads.flatten(2)

    def _pixels_around(self, refs: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Which tokens each object sees: indices (B, Q, L·w²) into S, and where they are of the valid image."""
        start, indices, seen = 0, [], []
        steps = torch.arange(self.window, device=refs.device) - self.window // 2
        valid = (layout.valid_ratios * layout.sizes).round().long()  # (B, L, 2) x, y
        for level, (h, w) in enumerate(layout.shapes):
            here = valid[:, None, level]
            nearest = (refs[..., :2].float() * here).floor().long().clamp(min=0).minimum(here - 1)
            pixels = nearest[..., None] + steps  # (B, Q, 2, w)
            inside = (pixels >= 0) & (pixels < here[..., None])
            x, y = pixels.clamp(min=0).minimum(here[..., None] - 1).unbind(2)
            indices.append((start + y[..., :, None] * w + x[..., None, :]).flatten(2))
            seen.append((inside[:, :, 1, :, None] & inside[:, :, 0, None, :]).flatten(2))
            start += h * w
        index, visible = torch.cat(indices, 2), torch.cat(seen, 2)
        if layout.padding is not None:  # matters where an image has no valid pixel
            visible = visible & ~_rows(layout.padding[..., None], index)[..., 0]
        return index, visible

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Attention in groups: q (B, G, M, Q, D), k and v (B, G, M, K, D); outputs like q and weights (B, G, M, Q, K).

        `bias` (M, Q, K) is added to the scores; `mask` (B or 1, G, 1, Q or 1, K) is True where a key is attended.
        """
        scores = (q * self.slot.head_dim**-0.5) @ k.transpose(-2, -1)
        if bias is not None:
            scores = scores + bias
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        if mask is not None:
            weights = weights.masked_fill(~mask.any(-1, keepdim=True), 0)
        return F.dropout(weights, self.dropout, self.training).to(v.dtype) @ v, weights

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        dim = self.slot.dim
        if self.slot.role == Role.DECODER:
            asking = count(queries)
            projections = 2 * asking * dim**2 + 2 * memory.tokens * dim**2
            return projections + 2 * asking * memory.levels * self.window**2 * dim
        windows = sum(-(-h // self.window) * -(-w // self.window) for h, w in memory.shapes)
        cut = windows * self.window**2  # tokens, those that fill up the last windows included
        return (3 * cut + memory.tokens) * dim**2 + 2 * cut * self.window**2 * dim


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x (B, S, C) at index (B, Q, K): (B, Q, K, C)."""
    batch, tokens, _ = x.shape
    first = torch.arange(batch, device=x.device)[:, None, None] * tokens
    return x.flatten(0, 1).index_select(0, (index + first).flatten()).unflatten(0, tuple(index.shape))


def _centers(layout: Layout) -> Tensor:
    """Every token's centre (B, S, 2) in [0, 1] of the padded map of its level."""
    ratios = [r.expand(-1, n, -1) for r, n in zip(layout.valid_ratios.split(1, 1), layout.lengths, strict=True)]
    return layout.centers * torch.cat(ratios, 1)


def _keys_of_windows(layout: Layout, cut: Partition) -> Tensor:
    """The centres (B, S, N, 2) of the pixels in every token's window, as `_centers`."""
    keys = cut.split(_centers(layout))  # (B, windows, N, 2)
    per_query = keys[:, :, None].expand(-1, -1, keys.shape[2], -1, -1)
    return cut.merge(per_query.flatten(3)).unflatten(-1, (-1, 2))
