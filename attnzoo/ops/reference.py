"""The operators in plain PyTorch: the fallback on every device, and the reference in float64."""

from attnzoo.ops.deform_kv_attn.reference import deform_kv_attn, deform_kv_attn_mlp
from attnzoo.ops.ms_deform_attn.reference import ms_deform_attn, ms_deform_attn_fused

__all__ = ["deform_kv_attn", "deform_kv_attn_mlp", "ms_deform_attn", "ms_deform_attn_fused"]
