"""Encoder and decoder layers, shared by all detectors: post-normalised, with the attention passed in."""

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo.attention import Attention
from attnzoo.attention.dense import MultiheadAttention
from attnzoo.geometry import Pyramid, Queries


class FeedForward(nn.Module):
    """Two linear layers with ReLU between, dim → hidden → dim, before the residual."""

    def __init__(self, dim: int, hidden: int, dropout: float):
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


class EncoderLayer(nn.Module):
    """The tokens of a pyramid attend to the pyramid, then the feed-forward network."""

    def __init__(self, attention: Attention, ffn: int, dropout: float):
        super().__init__()
        dim = attention.slot.dim
        self.attention = attention
        self.attention_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn, dropout)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        _xavier_multihead(self)

    def forward(self, memory: Pyramid) -> Pyramid:
        x = memory.tokens
        x = self.attention_norm(x + self.dropout(self.attention(memory.as_queries(), memory)))
        x = self.ffn_norm(x + self.dropout(self.ffn(x)))
        return replace(memory, tokens=x)


class DecoderLayer(nn.Module):
    """Object queries attend to each other (always densely), then to the memory, then the feed-forward network."""

    def __init__(self, attention: Attention, heads: int, ffn: int, dropout: float):
        super().__init__()
        dim = attention.slot.dim
        self.self_attention = MultiheadAttention(dim, heads, dropout)
        self.self_norm = nn.LayerNorm(dim)
        self.cross_attention = attention
        self.cross_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn, dropout)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        _xavier_multihead(self)

    def forward(self, queries: Queries, memory: Pyramid) -> Queries:
        x = queries.tokens
        asking = queries.with_pos_embed()
        x = self.self_norm(x + self.dropout(self.self_attention(asking, asking, x)))
        x = self.cross_norm(x + self.dropout(self.cross_attention(replace(queries, tokens=x), memory)))
        x = self.ffn_norm(x + self.dropout(self.ffn(x)))
        return replace(queries, tokens=x)


def _xavier_multihead(layer: nn.Module) -> None:
    """Published transformers initialise the output matrix of dense attention as the others, not as nn.Linear."""
    for module in layer.modules():
        if isinstance(module, MultiheadAttention):
            nn.init.xavier_uniform_(module.out_proj.weight)
