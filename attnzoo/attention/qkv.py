"""Base of attentions with a packed `qkv` projection whose queries attend to small sets of keys."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from attnzoo.attention.base import Attention
from attnzoo.errors import UserError
from attnzoo.geometry import Slot


class QkvAttention(Attention):
    """Parameters, projections and softmax of window and neighborhood attention.

    Weights are initialised with trunc_normal_(std=0.02), biases with zeros. `dropout` in [0, 1) is applied to the
    attention weights in training.
    """

    def __init__(self, slot: Slot, dropout: float = 0.0):
        super().__init__(slot)
        if not 0 <= dropout < 1:
            raise UserError(f"dropout = {dropout}: must be in [0, 1)")
        self.dropout = dropout
        self.qkv = nn.Linear(slot.dim, 3 * slot.dim)
        self.proj = nn.Linear(slot.dim, slot.dim)
        for linear in (self.qkv, self.proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project queries, keys and values, each (..., C); inputs that are the same tensor share one product."""
        if query is key and key is value:
            q, k, v = self.qkv(value).chunk(3, -1)
            return q, k, v
        (q_weight, k_weight, v_weight), (q_bias, k_bias, v_bias) = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        if query is key:
            qk_weight, qk_bias = self.qkv.weight[: -self.slot.dim], self.qkv.bias[: -self.slot.dim]
            q, k = F.linear(key, qk_weight, qk_bias).chunk(2, -1)
        else:
            q, k = F.linear(query, q_weight, q_bias), F.linear(key, k_weight, k_bias)
        return q, k, F.linear(value, v_weight, v_bias)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, G, N, C) as (B, G, M, N, C/M)."""
        return rearrange(x, "b g n (m d) -> b g m n d", m=self.slot.heads)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        *,
        zero_if_all_masked: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention within G groups: outputs (B, G, M, N, D) and, while recording, weights (B, G, M, N, K).

        q is (B, G, M, N, D), k and v are (B, G, M, K, D). `bias`, broadcast to the scores, is added to them; `mask`
        (B or 1, G, 1, N or 1, K) is True where a key is attended. Outputs are zero if `mask` has no key; without
        `zero_if_all_masked` they are finite, which saves a pass over the outputs.
        """
        is_vector = mask is not None and q.shape[-2] == 1
        has_own_bias = bias is not None and bias.dim() == q.dim()
        if (is_vector or has_own_bias) and self.needs_no_weights(q, k, v, bias):
            return _attend_fused(q, k, v, bias, mask), None
        scores = (q * self.slot.head_dim**-0.5) @ k.transpose(-2, -1)
        if bias is not None:
            scores = scores + bias
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        output = F.dropout(weights, self.dropout, self.training).to(v.dtype) @ v
        empty = ~mask.any(-1, keepdim=True) if mask is not None and zero_if_all_masked else None
        output = output if empty is None else output.masked_fill(empty, 0)
        if not self.recording:
            return output, None
        return output, weights if empty is None else weights.masked_fill(empty, 0)

    def needs_no_weights(self, q: Tensor, *others: Tensor | None) -> bool:
        """Whether attention to these inputs can use a fused operator, without its weights in memory.

        scaled_dot_product_attention was measured on a CPU (`attnzoo bench ops --operators window_attn`): it is faster
        for inference with one query per group or a bias per group, and slower otherwise, and for gradients of the bias.
        """
        given = [q, *(x for x in others if x is not None)]
        if q.shape[0] == 0 or self.recording or torch.compiler.is_compiling() or (self.training and self.dropout > 0):
            return False
        if torch.is_grad_enabled() and any(x.requires_grad for x in given):
            return False
        return all(x.device.type == "cpu" and x.dtype == q.dtype and x.dtype.itemsize >= 4 for x in given)


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
    """`QkvAttention.attend` without gradients, per image: needs no copy of the bias of all groups for each."""
    if mask is not None:
        bias = q.new_zeros(()) if bias is None else bias
        bias = torch.where(mask, bias, torch.finfo(q.dtype).min)
    assert bias is not None
    output = q.new_empty(*q.shape[:2], *q.shape[3:1:-1], q.shape[4]).transpose(2, 3)  # the heads of a token together
    images = zip(output, q, k, v, bias.expand(q.shape[0], *bias.shape[1:]), strict=True)
    for image_output, *tensors in images:
        image_output.copy_(F.scaled_dot_product_attention(*tensors))
    return output if mask is None else output.masked_fill_(~mask.any(-1, keepdim=True), 0)
