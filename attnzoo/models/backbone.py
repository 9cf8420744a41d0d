"""Backbones: any timm model that gives feature maps, and the hierarchical vision transformers of this package."""

import difflib
from typing import Any

import timm
import torch
from timm.layers import Format
from torch import Tensor, nn

from attnzoo.errors import UserError
from attnzoo.models import presets
from attnzoo.models.config import BackboneConfig
from attnzoo.models.frozen_norm import freeze_norms
from attnzoo.models.vit.features import Features
from attnzoo.models.weights import load_weights

RESNET_FROZEN = ("conv1", "layer1")  # in DETR and Deformable DETR
WHERE = "model.backbone"


class Backbone(nn.Module):
    """Feature maps of the strides asked for: images (B, 3, H, W) to [(B, Cᵢ, H/sᵢ, W/sᵢ)].

    `channels` holds Cᵢ. With `dilation` the last stage is dilated instead of strided (DC5), and of several
    stages with one stride the deepest is taken. Only this package's transformers heed the padding mask (B, H, W).

    Raises UserError for a name, option or stride that the model does not have, and for a prefix in
    `freeze` that no parameter has.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        # On the meta device this costs no memory and tells which map has which stride.
        with torch.device("meta"):
            offered = _create(config).feature_info.reduction()
        absent = [stride for stride in config.strides if stride not in offered]
        if absent or sorted(set(config.strides)) != config.strides:
            raise UserError(
                f"{WHERE}.strides = {config.strides}: {config.name} gives "
                f"{sorted(set(offered))}, to be listed in ascending order"
            )
        deepest = {stride: index for index, stride in enumerate(offered)}
        self.body = _create(config, out_indices=tuple(deepest[stride] for stride in config.strides))
        self.channels: list[int] = self.body.feature_info.channels()
        if config.weights is not None:
            # a file is of a classifier, which has no norms after its stages
            load_weights(self.body, config.weights, f"{WHERE}.weights", own="norms.", part=True)
        if config.norm == "frozen":
            self.body = freeze_norms(self.body)
        _freeze(self.body, config)
        # Swin and its like give their maps channels last; what does not say so in timm gives them first.
        self.channels_last = Format(getattr(self.body, "output_fmt", "NCHW")) == Format.NHWC

    def forward(self, images: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        if isinstance(self.body, Features):
            return self.body(images, mask)
        if images.device.type == "cpu" and not torch.is_grad_enabled():
            # oneDNN then converts no maps; with gradients its conversions of the weights cost as much again.
            images = images.contiguous(memory_format=torch.channels_last)
        maps = self.body(images)
        return [m.permute(0, 3, 1, 2) for m in maps] if self.channels_last else list(maps)


def _freeze(body: nn.Module, config: BackboneConfig) -> None:
    prefixes = config.freeze
    if prefixes is None:
        prefixes = list(RESNET_FROZEN) if all(hasattr(body, name) for name in RESNET_FROZEN) else []
    for prefix in prefixes:
        found = [p for name, p in body.named_parameters() if name.startswith(f"{prefix}.")]
        if not found:
            parts = ", ".join(name for name, _ in body.named_children())
            raise UserError(f"{WHERE}.freeze: {config.name} has no parameters in {prefix!r} (it has: {parts})")
        for parameter in found:
            parameter.requires_grad_(False)


def _create(config: BackboneConfig, out_indices: tuple[int, ...] | None = None) -> Any:
    """A feature extractor for a config: of all maps, or of those given."""
    if config.name not in presets.names(family="vit"):
        return _create_timm(config, **({} if out_indices is None else {"out_indices": out_indices}))
    if config.dilation:
        raise UserError(f"{WHERE}.dilation: {config.name} has no dilated form")
    return Features(
        presets.vit_config(config.name, config.options, f"{WHERE}.options"), out_indices, f"{WHERE}.options"
    )


def _create_timm(config: BackboneConfig, **more: Any) -> Any:
    """timm's feature extractor for a config; its complaints become one line."""
    if not timm.is_model(config.name):
        close = difflib.get_close_matches(config.name, [*presets.names(family="vit"), *timm.list_models()], n=3)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise UserError(f"{WHERE}.name: neither timm nor attnzoo has a model {config.name!r}{hint}")
    if config.dilation:
        more["output_stride"] = 16
    try:
        return timm.create_model(config.name, pretrained=False, features_only=True, **config.options, **more)
    except (TypeError, RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        what = f"options {config.options}" + (" and dilation" if config.dilation else "")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{WHERE}: timm cannot make features of {config.name} with {what}: {reason}") from error
