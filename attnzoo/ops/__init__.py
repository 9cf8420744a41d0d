"""The attention operators: Python API of the compiled kernels, with a pure-PyTorch fallback."""

from attnzoo.ops.compat import MSDeformAttnFunction, decompositions
from attnzoo.ops.deform_kv_attn.operator import deform_kv_attn, deform_kv_attn_mlp
from attnzoo.ops.library import backends, kernels, release_workspace
from attnzoo.ops.ms_deform_attn.module import MSDeformAttn
from attnzoo.ops.ms_deform_attn.operator import ms_deform_attn, ms_deform_attn_fused

__all__ = [
    "MSDeformAttn",
    "MSDeformAttnFunction",
    "backends",
    "decompositions",
    "deform_kv_attn",
    "deform_kv_attn_mlp",
    "kernels",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "release_workspace",
]
