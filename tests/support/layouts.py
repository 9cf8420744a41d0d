"""State dicts of transformers 4.57.6 under the names of other projects, written from their published code."""

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]


def official(state: State, *, dense: bool) -> State:
    """Under the names of facebookresearch/detr (`dense`) or fundamentalvision/Deformable-DETR."""
    converted: State = {}
    norms = ["norm1", "norm2"] if dense else ["norm2", "norm1"]  # of self- and cross-attention in the decoder
    pairs = [
        (r"model\.backbone\.conv_encoder\.model\.", "backbone.0.body."),
        (r"(encoder\.layers\.\d+\.)self_attn_layer_norm", r"\1norm1"),
        (r"(encoder\.layers\.\d+\.)final_layer_norm", r"\1norm2"),
        (r"(decoder\.layers\.\d+\.)self_attn_layer_norm", rf"\1{norms[0]}"),
        (r"(decoder\.layers\.\d+\.)encoder_attn_layer_norm", rf"\1{norms[1]}"),
        (r"(decoder\.layers\.\d+\.)final_layer_norm", r"\1norm3"),
        (r"encoder_attn", "multihead_attn" if dense else "cross_attn"),
        (r"\.fc([12])\.", r".linear\1."),
        (r"model\.query_position_embeddings", "query_embed"),
        (r"model\.input_proj\.", "input_proj."),
        (r"model\.input_projection", "input_proj"),
        (r"class_labels_classifier", "class_embed"),
        (r"bbox_predictor", "bbox_embed"),
        (r"model\.decoder\.layernorm", "transformer.decoder.norm"),
        (r"\Amodel\.", "transformer."),
    ]
    for name, tensor in state.items():
        if match := re.fullmatch(r"(.*\.)([qkv])_proj\.(weight|bias)", name):
            if match[2] == "q":
                tensor = torch.cat([state[f"{match[1]}{part}_proj.{match[3]}"] for part in "qkv"])
                name = f"{match[1]}in_proj_{match[3]}"
            else:
                continue
        name = official_resnet(name)
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        converted[name] = tensor
    return converted


def official_resnet(name: str) -> str:
    """A name of transformers' ResNet as torchvision has it."""
    name = name.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
    match = re.search(
        r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d+)|shortcut)\.(convolution|normalization)", name
    )
    if match is None:
        return name
    block = f"layer{int(match[1]) + 1}.{match[2]}."
    if match[3] is None:
        return name.replace(match[0], f"{block}downsample.{'01'[match[4] == 'normalization']}")
    return name.replace(match[0], f"{block}{'conv' if match[4] == 'convolution' else 'bn'}{int(match[3]) + 1}")


def transformers_5(state: State) -> State:
    """Under the names that the modules of transformers 5.23.0 have."""
    pairs = [
        (".conv_encoder.model.", ".model."),
        (r"layers\.(\d+)\.fc", r"layers.\1.mlp.fc"),
        (r"attn\.out_proj", "attn.o_proj"),
        (r"attention\.self\.(q)uery", r"attention.\1_proj"),
        (r"attention\.self\.(k)ey", r"attention.\1_proj"),
        (r"attention\.self\.(v)alue", r"attention.\1_proj"),
        (r"attention\.self\.relative", "attention.relative_position_bias.relative"),
        (r"attention\.output\.dense", "attention.o_proj"),
        (r"intermediate\.dense", "mlp.fc1"),
        (r"(\d)\.output\.dense", r"\1.mlp.fc2"),
    ]
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def save_official(state: State, path: Path) -> Path:
    """A training checkpoint of facebook's or SenseTime's code, with its options."""
    options = argparse.Namespace(lr=2e-4, masks=False, backbone="resnet50", lr_drop_epochs=None)
    content: dict[str, Any] = {"model": state, "optimizer": {"state": {}}, "epoch": 49, "args": options}
    torch.save(content, path)
    return path
