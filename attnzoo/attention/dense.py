"""Dense multi-head attention (Vaswani et al. 2017): every query attends to every token."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from attnzoo.attention.base import Attention, num_queries, register
from attnzoo.attention.recording import Recordable
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Slot


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

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Attend from query (B, Q, C) to key and value (B, S, C); returns (B, Q, C).

        `key_padding_mask` (B, S) is True where a token is not attended. If all keys of an image are masked, its output
        is the output bias.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            rearrange(F.linear(x, weight, bias), "b n (m d) -> b m n d", m=self.heads)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        mask = None if key_padding_mask is None else ~key_padding_mask[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        if self.recording:
            output = self._attend_unfused(q, k, v, mask, dropout)
        else:
            output = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        return self.out_proj(rearrange(output, "b m n d -> b n (m d)"))

    def _attend_unfused(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.softmax(-1)
        if mask is not None:
            weights = weights.masked_fill(~mask, 0)  # fully masked rows are NaN after softmax
        self.record(weights=weights)
        return F.dropout(weights, dropout).to(v.dtype) @ v

    def flops(self, num_queries: int, num_keys: int) -> int:
        """Multiply-accumulates for one image, projections included."""
        projections = (2 * num_queries + 2 * num_keys) * self.dim**2
        return projections + 2 * num_queries * num_keys * self.dim


@register("dense")
class DenseAttention(Attention):
    """Every query attends to all tokens of all levels. Cost is O(Q·S). Ignores reference points.

    `dropout`: of the attention weights in training, in [0, 1).
    """

    def __init__(self, slot: Slot, *, dropout: float = 0.0):
        super().__init__(slot)
        self.mha = MultiheadAttention(slot.dim, slot.heads, dropout)

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        mask = memory.layout.padding_mask
        return self.mha(queries.with_pos_embed(), memory.with_pos_embed(), memory.tokens, mask)

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        return self.mha.flops(num_queries(queries), memory.num_tokens)
