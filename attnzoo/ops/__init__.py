"""The operators: one Python face over the compiled library and its plain PyTorch fallback."""

from attnzoo.ops.reference import ms_deform_attn

__all__ = ["ms_deform_attn"]
