"""Post-norm encoder and decoder layers of all detectors; the attention module is passed in."""

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo.attention import Attention
from attnzoo.attention.dense import MultiheadAttention
from attnzoo.geometry import Pyramid, Queries


class FFN(nn.Module):
    """Feed-forward network: two linear layers with ReLU, dim → hidden_dim → dim; no residual."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float):
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


class EncoderLayer(nn.Module):
    """Self-attention over the tokens of a pyramid, then FFN."""

    def __init__(self, attention: Attention, ffn_dim: int, dropout: float):
        super().__init__()
        dim = attention.slot.dim
        self.attention = attention
        self.attention_norm = nn.LayerNorm(dim)
        self.ffn = FFN(dim, ffn_dim, dropout)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        _xavier_init_out_proj(self)

    def forward(self, memory: Pyramid) -> Pyramid:
        x = memory.tokens
        x = self.attention_norm(x + self.dropout(self.attention(memory.as_queries(), memory)))
        x = self.ffn_norm(x + self.dropout(self.ffn(x)))
        return replace(memory, tokens=x)


class DecoderLayer(nn.Module):
    """Dense self-attention over object queries, cross-attention to the memory, then FFN."""

    def __init__(self, attention: Attention, heads: int, ffn_dim: int, dropout: float):
        super().__init__()
        dim = attention.slot.dim
        self.self_attention = MultiheadAttention(dim, heads, dropout)
        self.self_norm = nn.LayerNorm(dim)
        self.cross_attention = attention
        self.cross_norm = nn.LayerNorm(dim)
        self.ffn = FFN(dim, ffn_dim, dropout)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        _xavier_init_out_proj(self)

    def forward(self, queries: Queries, memory: Pyramid) -> Queries:
        x = queries.tokens
        query = queries.with_pos_embed()
        x = self.self_norm(x + self.dropout(self.self_attention(query, query, x)))
        x = self.cross_norm(x + self.dropout(self.cross_attention(replace(queries, tokens=x), memory)))
        x = self.ffn_norm(x + self.dropout(self.ffn(x)))
        return replace(queries, tokens=x)


def _xavier_init_out_proj(layer: nn.Module) -> None:
    """Xavier initialisation of all matrices of dense attention, out_proj included, as in DETR."""
    for module in layer.modules():
        if isinstance(module, MultiheadAttention):
            nn.init.xavier_uniform_(module.out_proj.weight)
