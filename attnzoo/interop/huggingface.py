"""The settings of a Hugging Face folder: its config.json and preprocessor_config.json as overrides of ours."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attnzoo.errors import COMMAND_LINE, UserError, as_yaml
from attnzoo.files import JSON_ERRORS, read_json

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
DETECTORS = {"activation_function": "relu", "position_embedding_type": "sine"}
RESNET = {"model_type": "resnet", "embedding_size": 64, "hidden_act": "relu"} | dict.fromkeys(
    ("downsample_in_first_stage", "downsample_in_bottleneck"), False
)
SWIN = {"hidden_act": "gelu", "use_absolute_embeddings": False, "qkv_bias": True}
STAGE = {"depth": "depths", "heads": "num_heads", "dim": "embed_dim"}
NORMALISATION = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}  # of ImageNet

# Types of options, and ours that are made of them alone.
TYPES = dict.fromkeys(
    ("d_model", "encoder_attention_heads", "encoder_ffn_dim", "encoder_layers", "decoder_layers", "num_queries"), "int"
)
TYPES |= dict.fromkeys(("encoder_n_points", "decoder_n_points", "two_stage_num_proposals"), "int")
TYPES |= dict.fromkeys(("num_feature_levels", "window_size", "embed_dim", "image_size"), "count")
TYPES |= dict.fromkeys(("dropout", "mlp_ratio", "drop_path_rate"), "number")
TYPES |= dict.fromkeys(("dilation", "two_stage", "with_box_refine", "use_timm_backbone"), "bool or null")
TYPES |= dict.fromkeys(("depths", "num_heads", "hidden_sizes"), "ints") | {"layer_type": "str"}
TYPES |= dict.fromkeys(("backbone_config", "backbone_kwargs"), "mapping or null") | {"backbone": "str or null"}
TYPES |= {"out_features": "strs or null", "out_indices": "ints or null"}
EXPECTED = {
    "int": "a whole number",
    "count": "a whole number, at least 1",
    "ints": "a list of whole numbers",
    "number": "a number",
    "bool": "true or false",
    "str": "a name",
    "strs": "a list of names",
    "mapping": "a mapping",
}
IS: dict[str, Callable[[Any], bool]] = {
    "int": lambda value: type(value) is int,
    "count": lambda value: type(value) is int and value > 0,
    "ints": lambda value: isinstance(value, list) and all(type(each) is int for each in value),
    "number": lambda value: type(value) in (int, float),
    "bool": lambda value: type(value) is bool,
    "str": lambda value: isinstance(value, str),
    "strs": lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
    "mapping": lambda value: isinstance(value, Mapping),
    "null": lambda value: value is None,
}
THEIRS = {
    "model.dim": "d_model",
    "model.heads": "encoder_attention_heads",
    "model.ffn": "encoder_ffn_dim",
    "model.dropout": "dropout",
    "model.queries": "num_queries",
    "model.encoder.layers": "encoder_layers",
    "model.decoder.layers": "decoder_layers",
    "model.encoder.attention.points": "encoder_n_points",
    "model.decoder.attention.points": "decoder_n_points",
    "model.image_size": "image_size",
    "model.mlp_ratio": "mlp_ratio",
    "model.drop_path": "drop_path_rate",
} | {f"model.stage{index}.{ours}": theirs for index in range(1, 5) for ours, theirs in STAGE.items()}


def model_settings(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The preset, and what differs from it by config key, of a config.json; None for a model that is not known."""
    if config.get("model_type") in ("detr", "deformable_detr", "swin"):
        _check_types(config)
    match config.get("model_type"):
        case "detr" | "deformable_detr":
            pairs = {f"decoder_{name}": config.get(f"encoder_{name}") for name in ("attention_heads", "ffn_dim")}
            _check(config, **{name: value for name, value in pairs.items() if value is not None}, **DETECTORS)
            return _detector(config)
        case "swin":
            _check(config, **SWIN)
            return _swin(config)
    return None


def _check(config: Mapping[str, Any], where: str = "", /, **expected: Any) -> None:
    """Raise UserError for an option with another value than the only one that our models have."""
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise UserError(f"{CONFIG}: {where}{name} = {as_yaml(config[name])}: only {as_yaml(value)} is supported")


def _check_types(config: Mapping[str, Any], where: str = "", file: str = CONFIG) -> None:
    """Raise UserError for an option of another type."""
    for name in sorted(config.keys() & TYPES.keys()):
        value, kinds = config[name], TYPES[name].split(" or ")
        if not any(IS[kind](value) for kind in kinds):
            expected = " or ".join(EXPECTED.get(kind, kind) for kind in kinds)
            raise UserError(f"{file}: {where}{name} = {as_yaml(value)}: expected {expected}")
        if isinstance(value, Mapping):
            _check_types(value, f"{where}{name}.", file)


def as_theirs(error: UserError, file: Path) -> UserError:
    """An error about settings of `model_settings`, which are overrides of ours, as one about the config.json."""
    names = [THEIRS[key] for key in error.keys if key in THEIRS]
    message = str(error).removeprefix(f"{COMMAND_LINE}: ")
    return UserError(": ".join([str(file), *names[:1], message]), key=error.keys)


def preprocessing(folder: Path, task: str) -> dict[str, Any]:
    """The evaluation size of a folder by config key; {} if it does not say."""
    try:
        content = read_json(folder / PREPROCESSOR)
        size = content["size"]
    except (*JSON_ERRORS, KeyError, TypeError):
        return {}
    for name, value in NORMALISATION.items():
        if content.get(name, value) != value:
            raise UserError(f"{PREPROCESSOR}: {name} = {as_yaml(content[name])}: only {as_yaml(value)} is supported")
    if content.get("do_resize") is False:
        return {"data.augment": {"name": "none"}}
    if not isinstance(size, Mapping):
        size = {"height": size, "width": size, "shortest_edge": size}
    for name in ("shortest_edge", "longest_edge", "height", "width"):
        if name in size and not IS["count"](size[name]):
            where = f"size.{name}" if isinstance(content["size"], Mapping) else "size"
            raise UserError(f"{PREPROCESSOR}: {where} = {as_yaml(size[name])}: expected {EXPECTED['count']}")
    if task == "detection":
        if "shortest_edge" not in size:
            return {}
        shorter, longer = int(size["shortest_edge"]), int(size.get("longest_edge", 1333))
        training = {"data.augment.scales": [shorter], "data.augment.crop_scales": [shorter]}
        return training | {"data.augment.eval_scale": shorter, "data.augment.max_size": max(longer, shorter + 1)}
    if size.get("height") != size.get("width") or "height" not in size:
        return {}
    squash = {"data.augment.crop_pct": 1.0, "data.augment.crop_mode": "squash"}  # both sides, without a crop
    return squash | {"data.augment.size": int(size["height"])}


def _detector(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    dense = config["model_type"] == "detr"
    levels = 1 if dense else int(config.get("num_feature_levels", 4))
    name, options, indices = _backbone(config, levels)
    dilated = bool(config.get("dilation", False))
    strides = [2 ** (index + 1) for index in indices]
    if dilated:
        strides[-1] //= 2
    settings: dict[str, Any] = {
        "model.backbone.name": name,
        "model.backbone.options": options,
        "model.backbone.strides": strides,
        "model.backbone.dilation": dilated,
        "model.dim": config.get("d_model", 256),
        "model.heads": config.get("encoder_attention_heads", 8),
        "model.ffn": config.get("encoder_ffn_dim", 2048 if dense else 1024),
        "model.dropout": config.get("dropout", 0.1),
        "model.queries": config.get("num_queries", 100 if dense else 300),
        "model.encoder.layers": config.get("encoder_layers", 6),
        "model.decoder.layers": config.get("decoder_layers", 6),
    }
    if dense:
        return "detr_r50", settings
    two_stage = bool(config.get("two_stage", False))
    settings |= {
        "model.neck.c6": levels > len(strides),
        "model.encoder.attention.points": config.get("encoder_n_points", 4),
        "model.decoder.attention.points": config.get("decoder_n_points", 4),
        "model.head.refine": bool(config.get("with_box_refine", False)),
        "model.head.two_stage": two_stage,
    }
    if two_stage:
        settings["model.queries"] = config.get("two_stage_num_proposals", 300)
    return "deformable_detr_r50", settings


def _backbone(config: Mapping[str, Any], levels: int) -> tuple[str, dict[str, Any], list[int]]:
    """Name and options of timm, and the indices of the maps, of which the last has stride 32."""
    own = config.get("backbone_config")
    if isinstance(own, Mapping) and own.get("model_type") == "timm_backbone":
        kwargs = {"out_indices": own["out_indices"]} if own.get("out_indices") else {}
        config = {"backbone": own.get("backbone"), "backbone_kwargs": kwargs}
    elif isinstance(own, Mapping):
        _check(own, "backbone_config.", **RESNET)
        bottleneck = own.get("layer_type", "bottleneck") == "bottleneck"
        sizes = own.get("hidden_sizes", [256, 512, 1024, 2048])
        channels = [size // 4 for size in sizes] if bottleneck else list(sizes)
        options: dict[str, Any] = {"layers": list(own.get("depths", [3, 4, 6, 3])), "channels": channels}
        if options == {"layers": [3, 4, 6, 3], "channels": [64, 128, 256, 512]}:
            options = {}
        stages = own.get("out_features") or (["stage4"] if levels == 1 else ["stage2", "stage3", "stage4"])
        unknown = [stage for stage in stages if stage not in ("stem", "stage1", "stage2", "stage3", "stage4")]
        if unknown:
            raise UserError(f"{CONFIG}: backbone_config.out_features = {as_yaml(stages)}: expected stage1 … stage4")
        indices = [int(stage.removeprefix("stage")) for stage in stages if stage != "stem"]
        return "resnet50" if bottleneck else "resnet34", options, indices
    kwargs = dict(config.get("backbone_kwargs") or {})
    indices = kwargs.pop("out_indices", None) or ([4] if levels == 1 else [2, 3, 4])
    if len(indices) > levels:  # transformers names more maps than it uses
        indices = indices[-levels:]
    options = {key: value for key, value in kwargs.items() if key not in ("output_stride", "in_chans")}
    return str(config.get("backbone") or "resnet50"), options, list(indices)


def _swin(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    window, width = int(config.get("window_size", 7)), int(config.get("embed_dim", 96))
    depths, heads = config.get("depths", [2, 2, 6, 2]), config.get("num_heads", [3, 6, 12, 24])
    if not 1 <= len(depths) <= 4:
        raise UserError(f"{CONFIG}: depths = {as_yaml(depths)}: expected 1 to 4 numbers")
    if len(heads) != len(depths):
        raise UserError(f"{CONFIG}: num_heads = {as_yaml(heads)}: expected {len(depths)} numbers, as depths")
    settings: dict[str, Any] = {
        "model.image_size": config.get("image_size", 224),
        "model.mlp_ratio": config.get("mlp_ratio", 4.0),
        "model.drop_path": config.get("drop_path_rate", 0.1),
    }
    for index in range(4):
        stage = {"depth": depths[index], "heads": heads[index]} if index < len(depths) else {"depth": 0}
        blocks = {"first": {"window": window}, "second": {"window": window, "shift": window // 2}}
        settings[f"model.stage{index + 1}"] = {"dim": width * 2**index, **stage, **blocks}
    return "swin_tiny", settings
