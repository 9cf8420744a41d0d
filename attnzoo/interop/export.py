"""Export detectors and Swin classifiers to folders that Hugging Face transformers 4 loads."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attnzoo.errors import UserError, as_yaml, check_type
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.models.detr.detector import Detector
from attnzoo.models.vit.classifier import Classifier
from attnzoo.models.vit.config import StageConfig, VitConfig
from attnzoo.models.vit.features import Features
from attnzoo.models.weights.sources import named
from attnzoo.paths import output_folder

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_BODY = "backbone.body."
_BIAS_TABLE = "relative_position_bias_table"
_TIMM = "model.backbone.conv_encoder.model."
# Options that transformers' models do not have, and the values that they imply.
_COMMON = {"neck.fpn": False, "head.select": "class_agnostic", "head.content": "position", "head.anchor_size": 0.05}
_DETR = _COMMON | {
    "neck.norm": "none",
    "neck.c6": False,
    "neck.level_embedding": False,
    "neck.position": "detr",
    "decoder.attention.name": "dense",
    "decoder.norm": True,
    "decoder.learned_content": False,
    "head.boxes": "absolute",
    "head.two_stage": False,
    "loss.classification": "cross_entropy",
}
_DEFORMABLE = _COMMON | {
    "neck.norm": "group",
    "neck.level_embedding": True,
    "neck.position": "deformable_detr",
    "decoder.attention.name": "ms_deform",
    "decoder.norm": False,
    "decoder.learned_content": True,
    "head.boxes": "relative",
    "loss.classification": "focal",
}
_SWIN = {
    "patch_embed": "patch",
    "downsample": "merge",
    "mlp_conv": False,
    "local_perception": False,
    "layer_scale": None,
}


def export_huggingface(
    model: nn.Module,
    folder: str | Path,
    class_names: Sequence[str] | None = None,
    augment: Mapping[str, Any] | None = None,
) -> Path:
    """Write config.json, model.safetensors and preprocessor_config.json; returns the folder.

    `model` is a DETR or a Deformable DETR with a backbone of timm, which becomes DetrForObjectDetection or
    DeformableDetrForObjectDetection, or a Swin, which becomes SwinForImageClassification. Reading the folder with
    `attnzoo.interop.load` gives the same weights. `class_names` are in the order of the logits. With `augment`, such as
    `settings.data.augment` of what `attnzoo.load_model` returns, the folder says how images are resized; without it, as
    published: detectors 800 by at most 1333 pixels, classifiers `image_size`. transformers squashes images of a Swin to
    a square, without the crop of `crop_pct`.

    Raises UserError, before anything is written, for a model that transformers does not have, whose message names the
    option, and for a folder that is a file. TypeError for arguments of other types.
    """
    import safetensors.torch

    check_type("model", model, (nn.Module,), "a detector or a classifier of attnzoo")
    check_type("class_names", class_names, (list, tuple, type(None)), "a list of names")
    check_type("augment", augment, (Mapping, type(None)), "the options of data.augment")
    folder = output_folder(folder)
    if isinstance(model, Detector):
        config, processor = _detector(model, {"name": "detr"} if augment is None else augment)
    elif isinstance(model, Classifier):
        config, processor = _swin(model, {"name": "timm"} if augment is None else augment)
    else:
        raise UserError(f"cannot export a {type(model).__name__}: expected a detector or a classifier of attnzoo")
    names = [f"LABEL_{index}" for index in range(model.num_classes)] if class_names is None else list(class_names)
    if len(names) != model.num_classes:
        raise UserError(f"class_names has {len(names)} names, but the model has {model.num_classes} classes")
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    tensors = _tensors(model, f"transformers_{config['model_type']}")
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in (("config.json", config), ("preprocessor_config.json", processor)):
        (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _detector(model: Detector, augment: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    config = model.config
    dense = config.encoder.attention["name"] == "dense"
    _require(config, _DETR if dense else _DEFORMABLE, "DETR" if dense else "Deformable DETR")
    _require_sizes(model, dense)
    family = "Detr" if dense else "DeformableDetr"
    attention_dropout = config.encoder.attention.get("dropout", 0.0) if dense else config.dropout
    values: dict[str, Any] = {
        "architectures": [f"{family}ForObjectDetection"],
        "model_type": "detr" if dense else "deformable_detr",
        "d_model": config.dim,
        "num_queries": config.queries,
        "dropout": config.dropout,
        "activation_dropout": config.dropout,
        "attention_dropout": attention_dropout,
        "auxiliary_loss": False,
        "backbone_config": None,
        **_backbone(model),
        **{f"{part}_layers": layers for part, layers in _parts(config, "layers").items()},
        **{f"{part}_attention_heads": config.heads for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": config.ffn for part in ("encoder", "decoder")},
    }
    if not dense:
        values |= {
            "num_feature_levels": model.neck.num_levels,
            "encoder_n_points": config.encoder.attention.get("points", 4),
            "decoder_n_points": config.decoder.attention.get("points", 4),
            "with_box_refine": config.head.refine,
            "two_stage": config.head.two_stage,
            "two_stage_num_proposals": config.queries,
        }
    processor = {
        "image_processor_type": f"{family}ImageProcessor",
        "format": "coco_detection",
        "size": {"shortest_edge": augment.get("eval_scale", 800), "longest_edge": augment.get("max_size", 1333)},
        "do_pad": True,
        **_pixels(augment.get("name") == "detr"),
    }
    return values, processor


def _tensors(model: nn.Module, source: str) -> dict[str, Tensor]:
    """The state dict under the names of transformers, with a ResNet under those of timm; copies, on the CPU."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    tensors = {_TIMM + name.removeprefix(_BODY): tensor for name, tensor in state.items() if name.startswith(_BODY)}
    tensors |= named(source).export({name: tensor for name, tensor in state.items() if not name.startswith(_BODY)})
    for name in [name for name in tensors if name.endswith(_BIAS_TABLE)]:
        index = _relative_positions(math.isqrt(len(tensors[name])) // 2 + 1)
        tensors[name.removesuffix(_BIAS_TABLE) + "relative_position_index"] = index
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def _relative_positions(window: int) -> Tensor:
    """(window², window²) int64: the row of the bias table of each query and key. transformers misses it in a file."""
    steps = torch.arange(window)
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    place = (rows * (2 * window - 1) + columns).reshape(-1)
    return place[:, None] - place + place.max()


def _parts(config: DetectorConfig, key: str) -> dict[str, Any]:
    return {"encoder": getattr(config.encoder, key), "decoder": getattr(config.decoder, key)}


def _backbone(model: Detector) -> dict[str, Any]:
    backbone = model.config.backbone
    if isinstance(model.backbone.body, Features) or model.backbone.channels_last:
        name = as_yaml(backbone.name)
        raise UserError(f"cannot export model.backbone.name = {name}: not a convolutional model of timm")
    indices = list(model.backbone.body.feature_info.out_indices)
    options = backbone.options | {"out_indices": indices} | ({"output_stride": 16} if backbone.dilation else {})
    return {
        "use_timm_backbone": True,
        "use_pretrained_backbone": False,
        "backbone": backbone.name,
        "backbone_kwargs": options,
        "dilation": backbone.dilation,
    }


def _require(config: Any, required: Mapping[str, Any], family: str) -> None:
    for key, value in required.items():
        actual = config
        for part in key.split("."):
            actual = actual[part] if isinstance(actual, Mapping) else getattr(actual, part)
        if actual != value:
            raise _unsupported(f"model.{key}", actual, family, as_yaml(value))


def _unsupported(key: str, actual: Any, family: str, expected: str) -> UserError:
    return UserError(
        f"cannot export {key} = {as_yaml(actual)}: the {family} of transformers has {expected} there", key=key
    )


def _require_sizes(model: Detector, dense: bool) -> None:
    config, levels = model.config, model.neck.num_levels
    if dense:
        if levels > 1:
            raise _unsupported("model.backbone.strides", config.backbone.strides, "DETR", "one stride")
        return
    name = config.encoder.attention["name"]
    if name != "ms_deform":
        raise _unsupported("model.encoder.attention.name", name, "Deformable DETR", "ms_deform")
    if config.dim % 32 or config.dim == 32:
        raise _unsupported("model.dim", config.dim, "Deformable DETR", "a multiple of 32 above 32")
    if not config.head.refine and len({id(head) for head in model.heads.classes}) > 1:
        raise _unsupported("model.head.shared", config.head.shared, "Deformable DETR", "true without refine")
    if config.head.two_stage and not config.head.refine:
        raise _unsupported("model.head.refine", config.head.refine, "Deformable DETR", "true with two_stage")
    if levels == 1 and config.neck.c6:
        raise _unsupported("model.neck.c6", config.neck.c6, "Deformable DETR", "false with one level")


def _swin(model: Classifier, augment: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    config = model.config
    _require(config, _SWIN, "Swin")
    stages = [stage for stage in (config.stage1, config.stage2, config.stage3, config.stage4) if stage.depth]
    window = _window(config, stages)
    values = {
        "architectures": ["SwinForImageClassification"],
        "model_type": "swin",
        "image_size": config.image_size,
        "patch_size": 4,
        "embed_dim": stages[0].dim,
        "depths": [stage.depth for stage in stages],
        "num_heads": [stage.heads for stage in stages],
        "window_size": window,
        "mlp_ratio": config.mlp_ratio,
        "hidden_dropout_prob": config.dropout,
        "drop_path_rate": config.drop_path,
    }
    side = augment.get("size", config.image_size)
    size = {"height": side, "width": side}
    processor = {"image_processor_type": "ViTImageProcessor", "size": size, **_pixels(augment.get("name") == "timm")}
    return values, processor


def _window(config: VitConfig, stages: Sequence[StageConfig]) -> int:
    """The window of all blocks, every second one of which is shifted by half of it."""
    window = stages[0].first.get("window", 7)
    for number, stage in enumerate(stages, start=1):
        if stage.dim != stages[0].dim * 2 ** (number - 1):
            raise _unsupported(f"model.stage{number}.dim", stage.dim, "Swin", "twice that of the stage before")
        for block in range(stage.depth):
            key = ("first", "second")[stage.pattern[block % len(stage.pattern)] - 1]
            options = {"window": 7, "shift": 0, "bias": True, "dropout": 0.0} | getattr(stage, key)
            shift = window // 2 * (block % 2)
            if options["shift"] == "alternate":
                options["shift"] = options["window"] // 2 * (block % 2)
            expected = {"name": "window", "window": window, "shift": shift, "bias": True, "dropout": 0.0}
            if options != expected:
                raise _unsupported(f"model.stage{number}.{key}", getattr(stage, key), "Swin", as_yaml(expected))
    return int(window)


def _pixels(resized: bool) -> dict[str, Any]:
    return {
        "do_resize": resized,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }
