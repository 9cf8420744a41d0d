"""Convert checkpoints of Swin (official, timm, Hugging Face transformers 4) and DAT (official) to `Classifier`."""

import re
from collections.abc import Mapping

from torch import Tensor

from attnzoo.interop.state_dict import RenameRule, merge_qkv, rename_keys

# Index and mask buffers, which are recomputed.
_RECOMPUTED_BUFFERS = re.compile(r"\.(relative_position_index|attn_mask|q_grid|reference)\Z")

_SWIN: list[RenameRule] = [
    (r"patch_embed\.proj\.", "trunk.patch_embed.conv."),
    (r"patch_embed\.norm\.", "trunk.patch_embed.norm."),
    (r"layers\.(\d)\.blocks\.(\d+)\.attn\.", r"trunk.stages.\1.blocks.\2.attention."),
    (r"layers\.(\d)\.blocks\.(\d+)\.(norm1|norm2|mlp)\.", r"trunk.stages.\1.blocks.\2.\3."),
    (r"norm\.", "norm."),
]
_SWIN_OFFICIAL: list[RenameRule] = [
    *_SWIN,
    (r"layers\.(\d)\.downsample\.", lambda m: f"trunk.stages.{int(m[1]) + 1}.downsample."),
    (r"head\.", "head."),
]
_SWIN_TIMM: list[RenameRule] = [
    *_SWIN,
    (r"layers\.(\d)\.downsample\.", r"trunk.stages.\1.downsample."),
    (r"head\.fc\.", "head."),
]
_LAYER = r"swin\.encoder\.layers\.(\d)\."
_BLOCK = _LAYER + r"blocks\.(\d+)\."
_SWIN_TRANSFORMERS: list[RenameRule] = [
    (r"swin\.embeddings\.patch_embeddings\.projection\.", "trunk.patch_embed.conv."),
    (r"swin\.embeddings\.norm\.", "trunk.patch_embed.norm."),
    (_BLOCK + r"layernorm_before\.", r"trunk.stages.\1.blocks.\2.norm1."),
    (_BLOCK + r"layernorm_after\.", r"trunk.stages.\1.blocks.\2.norm2."),
    (_BLOCK + r"attention\.self\.(q|k|v)(?:uery|ey|alue)\.", r"trunk.stages.\1.blocks.\2.attention.\3_proj."),
    (_BLOCK + r"attention\.self\.relative", r"trunk.stages.\1.blocks.\2.attention.relative"),
    (_BLOCK + r"attention\.output\.dense\.", r"trunk.stages.\1.blocks.\2.attention.proj."),
    (_BLOCK + r"intermediate\.dense\.", r"trunk.stages.\1.blocks.\2.mlp.fc1."),
    (_BLOCK + r"output\.dense\.", r"trunk.stages.\1.blocks.\2.mlp.fc2."),
    (_LAYER + r"downsample\.", lambda m: f"trunk.stages.{int(m[1]) + 1}.downsample."),
    (r"swin\.layernorm\.", "norm."),
    (r"classifier\.", "head."),
]

_DAT_BLOCK = r"stages\.(\d)\.{}\.(\d+)\."
_DAT_ATTENTION = _DAT_BLOCK.format("attns")
_DAT: list[RenameRule] = [
    (r"stages\.(\d)\.layer_norms\.(\d+)\.norm\.", lambda m: f"{_block(m[1], int(m[2]) // 2)}.norm{int(m[2]) % 2 + 1}."),
    (_DAT_BLOCK.format("mlps") + r"chunk\.linear([12])\.", r"trunk.stages.\1.blocks.\2.mlp.fc\3."),
    (_DAT_BLOCK.format("mlps") + r"linear([12])\.0\.", r"trunk.stages.\1.blocks.\2.mlp.fc\3."),
    (_DAT_BLOCK.format("mlps") + r"dwc\.", r"trunk.stages.\1.blocks.\2.mlp.conv.conv."),
    (_DAT_BLOCK.format("local_perception_units"), r"trunk.stages.\1.blocks.\2.local.conv."),
    (_DAT_ATTENTION + r"proj_qkv\.", r"trunk.stages.\1.blocks.\2.attention.qkv."),
    (_DAT_ATTENTION + r"conv_offset\.", r"trunk.stages.\1.blocks.\2.attention.conv_offset.0."),
    (_DAT_ATTENTION + r"rpe_table\Z", r"trunk.stages.\1.blocks.\2.attention.rpe_table.0"),
    (_DAT_ATTENTION, r"trunk.stages.\1.blocks.\2.attention."),
    (r"down_projs\.(\d)\.0\.", lambda m: f"trunk.stages.{int(m[1]) + 1}.downsample.conv."),
    (r"down_projs\.(\d)\.1\.norm\.", lambda m: f"trunk.stages.{int(m[1]) + 1}.downsample.norm."),
    (r"cls_norm\.norm\.", "norm."),
    (r"cls_head\.", "head."),
]
_DAT_PATCH_EMBED: list[RenameRule] = [
    (r"patch_proj\.0\.", "trunk.patch_embed.conv."),
    (r"patch_proj\.1\.norm\.", "trunk.patch_embed.norm."),
]
_DAT_OVERLAP_PATCH_EMBED: list[RenameRule] = [
    (r"patch_proj\.([03])\.", lambda m: f"trunk.patch_embed.{2 * int(m[1]) // 3}.conv."),
    (r"patch_proj\.([14])\.norm\.", lambda m: f"trunk.patch_embed.{2 * (int(m[1]) - 1) // 3}.norm."),
]
# 1x1 convolutions of the official code that are linear layers here: all but the last of the offset network.
_CONV_TO_LINEAR = re.compile(r"\.(proj_q|proj_k|proj_v|proj_out|fc1|fc2)\.weight\Z")


def swin_from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert `checkpoint["model"]` of microsoft/Swin-Transformer.

    Raises UserError for an unexpected key, as the other functions of this module.
    """
    return rename_keys(_drop_recomputed(state), _SWIN_OFFICIAL, source="Swin")


def swin_from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of timm's `SwinTransformer`."""
    return rename_keys(_drop_recomputed(state), _SWIN_TIMM, source="timm")


def swin_from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of transformers' `SwinForImageClassification`."""
    renamed = rename_keys(_drop_recomputed(state), _SWIN_TRANSFORMERS, source="transformers")
    return merge_qkv(renamed, ".qkv.", source="transformers")


def dat_from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert `checkpoint["model"]` of LeapLabTHU/DAT, of DAT or DAT++.

    The attention option `convention` must be the published one, v1 or v2, as in the presets.
    """
    windows = {name.removesuffix(".proj_qkv.weight") for name in state if name.endswith(".proj_qkv.weight")}
    unified = {}  # DAT calls the output projection of window attention proj_out, DAT++ calls it proj
    for name, tensor in _drop_recomputed(state).items():
        block, separator, suffix = name.partition(".proj_out.")
        unified[f"{block}.proj.{suffix}" if separator and block in windows else name] = tensor
    rules = [*(_DAT_OVERLAP_PATCH_EMBED if "patch_proj.3.weight" in state else _DAT_PATCH_EMBED), *_DAT]
    renamed = rename_keys(unified, rules, source="DAT")
    return {name: tensor.flatten(1) if _CONV_TO_LINEAR.search(name) else tensor for name, tensor in renamed.items()}


def _block(stage: str, number: int) -> str:
    return f"trunk.stages.{stage}.blocks.{number}"


def _drop_recomputed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not _RECOMPUTED_BUFFERS.search(name)}
