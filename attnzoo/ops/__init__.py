"""The operators: one Python face over the compiled library, with plain PyTorch where it is missing."""

from attnzoo.ops.deform_attn import ms_deform_attn, ms_deform_attn_fused
from attnzoo.ops.deform_kv import deform_kv_attention, deform_kv_attention_mlp
from attnzoo.ops.interchange import MSDeformAttnFunction, decompositions
from attnzoo.ops.library import backends

__all__ = [
    "MSDeformAttnFunction",
    "backends",
    "decompositions",
    "deform_kv_attention",
    "deform_kv_attention_mlp",
    "ms_deform_attn",
    "ms_deform_attn_fused",
]
