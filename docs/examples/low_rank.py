"""Low-rank attention: queries attend to `rank` pooled tokens instead of all of them.

Linformer (Wang et al. 2020, arXiv:2006.04768) projects keys and values along the token axis by a learned matrix of
fixed length. Here the projection is predicted from the tokens, so any map size and padding are supported.
Cost is linear in the number of tokens.
"""

import torch
from torch import Tensor, nn

from attnzoo.attention.base import Attention, num_queries, register
from attnzoo.attention.dense import MultiheadAttention
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Slot


@register("low_rank")
class LowRankAttention(Attention):
    """`rank`: number of pooled tokens."""

    def __init__(self, slot: Slot, *, rank: int = 16):
        super().__init__(slot)
        if rank < 1:
            raise UserError(f"rank = {rank}: must be at least 1")
        self.rank = rank
        self.pool = nn.Linear(slot.dim, rank, bias=False)  # softmax over tokens is invariant to a bias
        self.mha = MultiheadAttention(slot.dim, slot.heads)

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        keys = memory.with_pos_embed()
        scores = self.pool(keys)
        if memory.layout.padding_mask is not None:
            scores = scores.masked_fill(memory.layout.padding_mask[..., None], torch.finfo(scores.dtype).min)
        pool_weights = scores.softmax(1).transpose(1, 2)  # (B, rank, S): each pooled token is a mean of tokens
        return self.mha(queries.with_pos_embed(), pool_weights @ keys, pool_weights @ memory.tokens)

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        pooling = 3 * memory.num_tokens * self.rank * self.slot.dim
        return pooling + self.mha.flops(num_queries(queries), self.rank)
