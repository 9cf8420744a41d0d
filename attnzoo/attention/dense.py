"""Dense multi-head attention (Vaswani et al. 2017): every query attends to every token."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from attnzoo.attention.base import Attention, num_queries, register
from attnzoo.attention.dat_bias import MlpBias, Positions
from attnzoo.attention.recording import Recordable
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot

BIAS_HIDDEN_DIM = 32


class MultiheadAttention(Recordable):
    """Multi-head attention on plain tensors. Parameters and initialisation match `nn.MultiheadAttention`.

    `dim` channels are split over `heads`; `dropout`: of the attention weights in training, in [0, 1).
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if not 0 <= dropout < 1:
            raise UserError(f"dropout = {dropout}: must be in [0, 1)")
        self.dim, self.heads, self.dropout = dim, heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        bias: "RelativeBias | None" = None,
    ) -> Tensor:
        """Attend from query (B, Q, C) to key and value (B, S, C); returns (B, Q, C).

        `key_padding_mask` (B, S) is True where a token is not attended. If all keys of an image are masked, its output
        is the output bias. `bias` is added to the scores.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            rearrange(F.linear(x, weight, bias), "b n (m d) -> b m n d", m=self.heads)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        mask = None if key_padding_mask is None else ~key_padding_mask[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        if self.recording:
            output = self._attend_unfused(q, k, v, mask, bias, dropout)
        elif bias is None:
            output = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        elif dropout:
            additive = bias.matrix().to(q.dtype)
            additive = additive if mask is None else additive.masked_fill(~mask, -torch.inf)
            output = F.scaled_dot_product_attention(q, k, v, additive, dropout)
        else:
            output = bias.mlp.attend(q, k, v, bias.positions)  # without the bias of all pairs in memory
        return self.out_proj(rearrange(output, "b m n d -> b n (m d)"))

    def _attend_unfused(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: "RelativeBias | None", dropout: float
    ) -> Tensor:
        scores, recorded = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), {}
        if bias is not None:
            recorded = {"bias": bias.matrix(), "reference_points": bias.reference_points}
            recorded["locations"] = bias.layout.padded_centers
            scores = scores + recorded["bias"]
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.softmax(-1)
        if mask is not None:
            weights = weights.masked_fill(~mask, 0)  # fully masked rows are NaN after softmax
        self.record(weights=weights, **recorded)
        return F.dropout(weights, dropout).to(v.dtype) @ v

    def flops(self, num_queries: int, num_keys: int) -> int:
        """Multiply-accumulates for one image, projections included."""
        projections = (2 * num_queries + 2 * num_keys) * self.dim**2
        return projections + 2 * num_queries * num_keys * self.dim


@dataclass(frozen=True, eq=False)
class RelativeBias:
    """The relative position bias of queries with `reference_points` (B, Q, 2 or 4) and all tokens of a pyramid.

    `dtype` is that of positions, float32 or higher.
    """

    mlp: MlpBias
    reference_points: Tensor
    layout: Layout
    dtype: torch.dtype

    @property
    def positions(self) -> Positions:
        """Positions from -1 to 1 over the valid image."""
        queries = 2 * self.reference_points[:, None, :, :2].to(self.dtype) - 1
        return Positions(
            queries=queries.expand(-1, self.layout.num_levels, -1, -1),
            keys=2 * self.layout.centers[:, None].to(self.dtype) - 1,
            valid_sizes=self.layout.valid_sizes,
            key_padding=self.layout.padding_mask,
            key_counts=list(self.layout.tokens_per_level),
        )

    def matrix(self) -> Tensor:
        """The bias (B, M, Q, S)."""
        return self.mlp.bias_matrix(self.positions)


@register("dense")
class DenseAttention(Attention):
    """Every query attends to all tokens of all levels (Vaswani et al., 2017). Cost is O(Q·S).

    - `dropout`: of the attention weights in training, in [0, 1)
    - `bias`: `none`, or `relative`, an MLP per level on log-spaced positions of the query relative to the key (Liu et
      al., Swin Transformer V2, CVPR 2022, eq. 3 and 4), with the 32 hidden units of DAT++; it needs reference points
    """

    def __init__(self, slot: Slot, *, dropout: float = 0.0, bias: Literal["none", "relative"] = "none"):
        super().__init__(slot)
        self.mha = MultiheadAttention(slot.dim, slot.heads, dropout)
        self.relative_bias = MlpBias(slot.heads, slot.levels, BIAS_HIDDEN_DIM) if bias == "relative" else None
        if self.relative_bias is not None:
            self.needs_reference_points = frozenset(Role)

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        bias = None
        if self.relative_bias is not None:
            self.check_levels(memory.layout)
            dtype = torch.promote_types(queries.tokens.dtype, torch.float32)
            bias = RelativeBias(self.relative_bias, self.require_reference_points(queries), memory.layout, dtype)
        mask = memory.layout.padding_mask
        return self.mha(queries.with_pos_embed(), memory.with_pos_embed(), memory.tokens, mask, bias)

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        q, keys = num_queries(queries), memory.num_tokens
        bias = 0 if self.relative_bias is None else self.relative_bias.flops(q, keys, groups=1)
        return self.mha.flops(q, keys) + bias
