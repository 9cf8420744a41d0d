"""Reference implementations in plain PyTorch, for tests in float64 and where no kernel is compiled."""

from attnzoo.ops.deform_kv_attn.reference import deform_kv_attn, deform_kv_attn_mlp
from attnzoo.ops.ms_deform_attn.reference import ms_deform_attn, ms_deform_attn_fused

__all__ = ["deform_kv_attn", "deform_kv_attn_mlp", "ms_deform_attn", "ms_deform_attn_fused"]
