"""The operators: one Python face over the compiled library, with plain PyTorch where it is missing."""

from attnzoo.ops.deform_kv_attn.operator import deform_kv_attn, deform_kv_attn_mlp
from attnzoo.ops.interchange import MSDeformAttnFunction, decompositions
from attnzoo.ops.library import backends
from attnzoo.ops.ms_deform_attn.operator import ms_deform_attn, ms_deform_attn_fused

__all__ = [
    "MSDeformAttnFunction",
    "backends",
    "decompositions",
    "deform_kv_attn",
    "deform_kv_attn_mlp",
    "ms_deform_attn",
    "ms_deform_attn_fused",
]
