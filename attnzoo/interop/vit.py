"""Checkpoints of Swin and DAT, as their authors, timm and Hugging Face transformers 4 name them, for our classifier."""

import re
from collections.abc import Mapping

from torch import Tensor

from attnzoo.interop.rename import Rule, merge_projections, rename

# Tables of indices and masks, which we compute.
_COMPUTED = re.compile(r"\.(relative_position_index|attn_mask|q_grid|reference)\Z")

_SWIN: list[Rule] = [
    (r"patch_embed\.proj\.", "trunk.patch_embed.conv."),
    (r"patch_embed\.norm\.", "trunk.patch_embed.norm."),
    (r"layers\.(\d)\.blocks\.(\d+)\.attn\.", r"trunk.stages.\1.blocks.\2.attention."),
    (r"layers\.(\d)\.blocks\.(\d+)\.(norm1|norm2|mlp)\.", r"trunk.stages.\1.blocks.\2.\3."),
    (r"norm\.", "norm."),
]
_SWIN_AUTHORS: list[Rule] = [
    *_SWIN,
    (r"layers\.(\d)\.downsample\.", lambda m: f"trunk.stages.{int(m[1]) + 1}.downsample."),
    (r"head\.", "head."),
]
_SWIN_TIMM: list[Rule] = [
    *_SWIN,
    (r"layers\.(\d)\.downsample\.", r"trunk.stages.\1.downsample."),
    (r"head\.fc\.", "head."),
]
_LAYER = r"swin\.encoder\.layers\.(\d)\."
_BLOCK = _LAYER + r"blocks\.(\d+)\."
_SWIN_TRANSFORMERS: list[Rule] = [
    (r"swin\.embeddings\.patch_embeddings\.projection\.", "trunk.patch_embed.conv."),
    (r"swin\.embeddings\.norm\.", "trunk.patch_embed.norm."),
    (_BLOCK + r"layernorm_before\.", r"trunk.stages.\1.blocks.\2.norm1."),
    (_BLOCK + r"layernorm_after\.", r"trunk.stages.\1.blocks.\2.norm2."),
    (_BLOCK + r"attention\.self\.(q)uery\.", r"trunk.stages.\1.blocks.\2.attention.\3_proj."),
    (_BLOCK + r"attention\.self\.(k)ey\.", r"trunk.stages.\1.blocks.\2.attention.\3_proj."),
    (_BLOCK + r"attention\.self\.(v)alue\.", r"trunk.stages.\1.blocks.\2.attention.\3_proj."),
    (_BLOCK + r"attention\.self\.relative", r"trunk.stages.\1.blocks.\2.attention.relative"),
    (_BLOCK + r"attention\.output\.dense\.", r"trunk.stages.\1.blocks.\2.attention.proj."),
    (_BLOCK + r"intermediate\.dense\.", r"trunk.stages.\1.blocks.\2.mlp.fc1."),
    (_BLOCK + r"output\.dense\.", r"trunk.stages.\1.blocks.\2.mlp.fc2."),
    (_LAYER + r"downsample\.", lambda m: f"trunk.stages.{int(m[1]) + 1}.downsample."),
    (r"swin\.layernorm\.", "norm."),
    (r"classifier\.", "head."),
]


def swin_from_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of our classifier from `checkpoint["model"]` of microsoft/Swin-Transformer.

    Raises UserError for a tensor that has no place, as the other functions here do.
    """
    return rename(_kept(state), _SWIN_AUTHORS, layers=0, ignore=(), source="Swin")


def swin_from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of our classifier from that of timm's `SwinTransformer`."""
    return rename(_kept(state), _SWIN_TIMM, layers=0, ignore=(), source="timm")


def swin_from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of our classifier from that of `SwinForImageClassification`."""
    renamed = rename(_kept(state), _SWIN_TRANSFORMERS, layers=0, ignore=(), source="transformers")
    return merge_projections(renamed, ".qkv.", source="transformers")


def _kept(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not _COMPUTED.search(name)}
