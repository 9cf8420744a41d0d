"""Low-rank attention: queries look at `rank` pooled tokens instead of all of them.

Linformer (Wang et al. 2020, arXiv:2006.04768) projects keys and values along the token axis by a learned matrix of
fixed length. Here the projection is predicted from the tokens, so that maps of any size, and padding, are possible.
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
    """`rank` is the number of pooled tokens."""

    def __init__(self, slot: Slot, *, rank: int = 16):
        super().__init__(slot)
        if rank < 1:
            raise UserError(f"rank = {rank}: must be at least 1")
        self.rank = rank
        self.pool = nn.Linear(slot.dim, rank, bias=False)  # a bias would cancel in the softmax
        self.mha = MultiheadAttention(slot.dim, slot.heads)

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        keys = memory.with_pos_embed()
        scores = self.pool(keys)
        if memory.layout.padding_mask is not None:
            scores = scores.masked_fill(memory.layout.padding_mask[..., None], torch.finfo(scores.dtype).min)
        pool = scores.softmax(1).transpose(1, 2)  # (B, rank, S): each pooled token is a mean of tokens
        return self.mha(queries.with_pos_embed(), pool @ keys, pool @ memory.tokens)

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        pooling = 3 * memory.num_tokens * self.rank * self.slot.dim
        return pooling + self.mha.flops(num_queries(queries), self.rank)
