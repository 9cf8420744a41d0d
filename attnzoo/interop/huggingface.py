"""Convert DETR and Deformable DETR checkpoints of Hugging Face transformers 4."""

from collections.abc import Mapping

from torch import Tensor

from attnzoo.interop.state_dict import RenameRule, merge_qkv, rename_keys
from attnzoo.models.detr.config import DetectorConfig

_BACKBONE_PREFIX = r"model\.backbone\.conv_encoder\.model\."
_BLOCK = _BACKBONE_PREFIX + r"encoder\.stages\.(\d+)\.layers\.(\d+)\."
_ENCODER = r"model\.encoder\.layers\.(\d+)\."
_DECODER = r"model\.decoder\.layers\.(\d+)\."

# Indices of transformers' ResNet start at 0. Names of a timm backbone stay as they are.
_BACKBONE: list[RenameRule] = [
    (_BACKBONE_PREFIX + r"embedder\.embedder\.convolution\.", "backbone.body.conv1."),
    (_BACKBONE_PREFIX + r"embedder\.embedder\.normalization\.", "backbone.body.bn1."),
    (_BLOCK + r"layer\.(\d+)\.convolution\.", lambda m: f"{_block(m[1], m[2])}.conv{int(m[3]) + 1}."),
    (_BLOCK + r"layer\.(\d+)\.normalization\.", lambda m: f"{_block(m[1], m[2])}.bn{int(m[3]) + 1}."),
    (_BLOCK + r"shortcut\.convolution\.", lambda m: f"{_block(m[1], m[2])}.downsample.0."),
    (_BLOCK + r"shortcut\.normalization\.", lambda m: f"{_block(m[1], m[2])}.downsample.1."),
    (_BACKBONE_PREFIX, "backbone.body."),
]
_TRANSFORMER: list[RenameRule] = [
    (_ENCODER + r"self_attn_layer_norm\.", r"encoder.\1.attention_norm."),
    (_ENCODER + r"final_layer_norm\.", r"encoder.\1.ffn_norm."),
    (_ENCODER + r"fc([12])\.", r"encoder.\1.ffn.linear\2."),
    (_DECODER + r"self_attn\.", r"decoder.\1.self_attention."),
    (_DECODER + r"self_attn_layer_norm\.", r"decoder.\1.self_norm."),
    (_DECODER + r"encoder_attn_layer_norm\.", r"decoder.\1.cross_norm."),
    (_DECODER + r"final_layer_norm\.", r"decoder.\1.ffn_norm."),
    (_DECODER + r"fc([12])\.", r"decoder.\1.ffn.linear\2."),
    (r"model\.query_position_embeddings\.", "queries.embedding."),
]
_DETR: list[RenameRule] = [
    (_ENCODER + r"self_attn\.", r"encoder.\1.attention.mha."),
    (_DECODER + r"encoder_attn\.", r"decoder.\1.cross_attention.mha."),
    (r"model\.decoder\.layernorm\.", "decoder_norm."),
    (r"model\.input_projection\.", "neck.projections.0.0."),
    (r"class_labels_classifier\.", "heads.classes.*."),
    (r"bbox_predictor\.", "heads.boxes.*."),
]
_DEFORMABLE: list[RenameRule] = [
    (_ENCODER + r"self_attn\.", r"encoder.\1.attention."),
    (_DECODER + r"encoder_attn\.", r"decoder.\1.cross_attention."),
    (r"model\.level_embed\Z", "neck.level_embedding"),
    (r"model\.input_proj\.", "neck.projections."),
    (r"model\.reference_points\.", "queries.reference_points."),
    (r"model\.enc_output\.", "queries.output."),
    (r"model\.enc_output_norm\.", "queries.output_norm."),
    (r"model\.pos_trans\.", "queries.position."),
    (r"model\.pos_trans_norm\.", "queries.position_norm."),
    (r"class_embed\.", "heads.classes."),
    (r"bbox_embed\.", "heads.boxes."),
]
# Second references to the heads, in decoders with box refinement.
_ALIASES = ("model.decoder.class_embed.", "model.decoder.bbox_embed.")


def convert(state: Mapping[str, Tensor], config: DetectorConfig) -> dict[str, Tensor]:
    """Convert a state dict of `DetrForObjectDetection` or `DeformableDetrForObjectDetection` to attnzoo's `Detector`.

    `config` must describe the same model. The backbone is a ResNet of timm or of transformers.
    Raises UserError for an unexpected or missing key.
    """
    layers = config.decoder.layers
    # If present, the head after the decoder's belongs to the encoder, and the last input projection is C6.
    deformable: list[RenameRule] = [
        (rf"class_embed\.{layers}\.", "heads.encoder_class."),
        (rf"bbox_embed\.{layers}\.", "heads.encoder_box."),
        (rf"model\.input_proj\.{len(config.backbone.strides)}\.", "neck.c6."),
        *_DEFORMABLE,
    ]
    family = _DETR if config.encoder.attention["name"] == "dense" else deformable
    rules = [*_BACKBONE, *_TRANSFORMER, *family]
    renamed = rename_keys(state, rules, layers=layers, ignore=_ALIASES, source="transformers")
    return merge_qkv(renamed, ".in_proj_", source="transformers")


def _block(stage: str, block: str) -> str:
    return f"backbone.body.layer{int(stage) + 1}.{block}"
