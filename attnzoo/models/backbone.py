"""Backbones: timm models as feature extractors, and the hierarchical ViTs of attnzoo."""

import difflib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import timm
import torch
from einops import rearrange
from timm.layers import Format
from timm.models import FeatureListNet, is_model_in_modules
from torch import Tensor, nn

from attnzoo.errors import UserError, as_yaml, describe
from attnzoo.models import presets
from attnzoo.models.config import BackboneConfig
from attnzoo.models.frozen_norm import freeze_and_fold_batch_norms, reset_zero_batch_norms
from attnzoo.models.vit.features import Features
from attnzoo.models.weights import load_weights

RESNET_FROZEN = ("conv1", "layer1")  # in DETR and Deformable DETR
KEY = "model.backbone"
# Options of timm's constructors that are sizes: some models are built with negative ones, and lack layers.
SIZES = (
    *("layers", "depths", "channels", "dims", "embed_dim", "embed_dims", "num_heads", "stem_width", "base_width"),
    *("cardinality", "patch_size", "window_size", "kernel_sizes"),
)
RESNET_LISTS = ("layers", "channels")  # one entry for each of the four stages


class Backbone(nn.Module):
    """Feature maps at the configured strides: images (B, 3, H, W) to [(B, Cᵢ, H/sᵢ, W/sᵢ)].

    `channels` lists Cᵢ. With `dilation` the last stage is dilated instead of strided (DC5). If stages share a stride,
    the deepest is used. Only the ViTs of attnzoo use the padding mask (B, H, W).

    Raises UserError for an unknown name, option or stride, and for a prefix in `freeze` that matches no parameter.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        with torch.device("meta"):  # reads the strides without allocating weights
            reductions = _create(config).feature_info.reduction()
        if config.strides != [stride for stride in sorted(set(reductions)) if stride in config.strides]:
            raise UserError(
                f"{KEY}.strides = {config.strides}: must be in ascending order and among the strides "
                f"{sorted(set(reductions))} of {config.name}",
                key=f"{KEY}.strides",
            )
        stage_of_stride = {stride: index for index, stride in enumerate(reductions)}
        self.body = _create(config, out_indices=tuple(stage_of_stride[stride] for stride in config.strides))
        self.channels: list[int] = self.body.feature_info.channels()
        if config.weights is not None:
            load_weights(self.body, config.weights, f"{KEY}.weights")
        if config.norm == "frozen":
            if config.weights is None:
                reset_zero_batch_norms(self.body)
            self.body = freeze_and_fold_batch_norms(self.body)
        if isinstance(self.body, FeatureListNet):
            _pool_before_relu(self.body)
        _freeze(self.body, config)
        # timm models that return (B, h, w, C), such as Swin, declare it; others return (B, C, h, w).
        self.channels_last = Format(getattr(self.body, "output_fmt", "NCHW")) == Format.NHWC

    def forward(self, images: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        if isinstance(self.body, Features):
            return self.body(images, mask)
        if images.device.type == "cpu" and not torch.is_grad_enabled():
            # oneDNN then converts no maps. In training it converts weights instead, which costs as much.
            images = images.contiguous(memory_format=torch.channels_last)
        feature_maps = self.body(images)
        return [rearrange(x, "b h w c -> b c h w") for x in feature_maps] if self.channels_last else list(feature_maps)


def _pool_before_relu(body: FeatureListNet) -> None:
    """Move max pooling of the stem before its ReLU. Both commute exactly; the ReLU then has a quarter of the pixels."""
    layers = list(body.items())
    for i, ((name, relu), (_, pool)) in enumerate(pairwise(layers)):
        if isinstance(relu, nn.ReLU) and isinstance(pool, nn.MaxPool2d) and name not in body.return_layers:
            layers[i : i + 2] = layers[i + 1], layers[i]
    body.clear()
    body.update(dict(layers))


def _freeze(body: nn.Module, config: BackboneConfig) -> None:
    prefixes = config.freeze
    if prefixes is None:
        prefixes = list(RESNET_FROZEN) if all(hasattr(body, name) for name in RESNET_FROZEN) else []
    for prefix in prefixes:
        parameters = [p for name, p in body.named_parameters() if name.startswith(f"{prefix}.")]
        if not parameters:
            children = ", ".join(name for name, _ in body.named_children())
            raise UserError(
                f"{KEY}.freeze: {config.name} has no parameters in {prefix!r} (it has: {children})", key=f"{KEY}.freeze"
            )
        for parameter in parameters:
            parameter.requires_grad_(False)


def _create(config: BackboneConfig, out_indices: tuple[int, ...] | None = None) -> Any:
    """The feature extractor for a config, of all stages by default."""
    if config.name not in presets.names(family="vit"):
        return _create_timm(config, **({} if out_indices is None else {"out_indices": out_indices}))
    if config.dilation:
        raise UserError(f"{KEY}.dilation: {config.name} does not support dilation", key=f"{KEY}.dilation")
    where = f"{KEY}.options"
    return Features(presets.vit_config(config.name, config.options, where), out_indices, where)


def _create_timm(config: BackboneConfig, **kwargs: Any) -> Any:
    """The timm feature extractor for a config. Raises UserError for timm's errors."""
    if not timm.is_model(config.name):
        close = difflib.get_close_matches(config.name, [*presets.names(family="vit"), *timm.list_models()], n=3)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise UserError(
            f"{KEY}.name: unknown model {config.name!r}, neither in timm nor in attnzoo{hint}", key=f"{KEY}.name"
        )
    _check_timm_options(config)
    if config.dilation:
        kwargs["output_stride"] = 16
    try:
        return timm.create_model(config.name, pretrained=False, features_only=True, **config.options, **kwargs)
    except UserError:
        raise
    except Exception as error:  # whatever a constructor does with options that are not for it
        settings = f"options {as_yaml(config.options)}" + (" and dilation" if config.dilation else "")
        reason = describe(error)
        raise UserError(
            f"{KEY}: timm cannot create a feature extractor from {config.name} with {settings}: {reason}",
            key=(f"{KEY}.name", f"{KEY}.options"),
        ) from error


def _check_timm_options(config: BackboneConfig) -> None:
    """Raise UserError for options with which timm builds another model than they say, or fails without saying why."""
    is_resnet = is_model_in_modules(config.name, ["resnet"])
    for name, value in config.options.items():
        key, problem = f"{KEY}.options.{name}", ""
        if is_resnet and name in RESNET_LISTS:
            sizes = value if isinstance(value, (list, tuple)) else ()
            if len(sizes) != 4 or not all(type(size) is int and size > 0 for size in sizes):
                problem = "expected four numbers at least 1, one for each stage"
        elif is_resnet and name == "block":
            problem = f"the kind of blocks is that of {config.name}; set {KEY}.name to choose another"
        elif name in SIZES and any(size < 1 for size in _integers(value)):
            problem = f"expected {'a number' if isinstance(value, int) else 'numbers'} at least 1"
        if problem:
            raise UserError(f"{key} = {as_yaml(value)}: {problem}", key=key)


def _integers(value: Any) -> Iterator[int]:
    """The integers in nested lists."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _integers(item)
    elif type(value) is int:
        yield value
