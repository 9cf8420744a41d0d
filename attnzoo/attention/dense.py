"""Dense multi-head attention (Vaswani et al. 2017): every query looks at every token."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo.attention.base import Attention, count, register
from attnzoo.attention.recording import Traceable
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Slot


class MultiheadAttention(Traceable):
    """The plain core, on tensors: parameters, names and initialisation are those of `nn.MultiheadAttention`.

    `dim` channels are split over `heads`; `dropout` in [0, 1) falls on the attention weights in training.
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

    def forward(self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None = None) -> Tensor:
        """Attend from query (B, Q, C) to key and value (B, S, C); returns (B, Q, C).

        `padding` (B, S) is True where a token is not attended. Where an image has nothing else, its queries
        get the output bias.
        """
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        mask = None if padding is None else ~padding[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        if self.traced:
            heads = self._attend_traced(q, k, v, mask, dropout)
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        return self.out_proj(heads.transpose(1, 2).flatten(2))

    def _attend_traced(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.softmax(-1)
        if mask is not None:
            weights = weights.masked_fill(~mask, 0)  # a row without anything to attend is 0 / 0
        self.trace(weights=weights)
        return F.dropout(weights, dropout).to(v.dtype) @ v

    def flops(self, queries: int, tokens: int) -> int:
        """Multiply-accumulates of `queries` looking at `tokens`, projections included, for one image."""
        projections = (2 * queries + 2 * tokens) * self.dim**2
        return projections + 2 * queries * tokens * self.dim


@register("dense")
class DenseAttention(Attention):
    """Every query looks at every token of all levels jointly. Cost grows with Q·S; references are not used.

    `dropout` in [0, 1) falls on the attention weights in training.
    """

    def __init__(self, slot: Slot, *, dropout: float = 0.0):
        super().__init__(slot)
        self.mha = MultiheadAttention(slot.dim, slot.heads, dropout)

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        return self.mha(queries.positioned(), memory.positioned(), memory.tokens, memory.layout.padding)

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        return self.mha.flops(count(queries), memory.tokens)
