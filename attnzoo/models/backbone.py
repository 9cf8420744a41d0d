"""Backbones: any timm model that gives feature maps."""

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from attnzoo.config.schema import BackboneConfig
from attnzoo.errors import UserError

WHERE = "model.backbone"


class Backbone(nn.Module):
    """Feature maps of the strides asked for: images (B, 3, H, W) to [(B, Cᵢ, H/sᵢ, W/sᵢ)].

    `channels` holds Cᵢ. With `dilation` the last stage is dilated instead of strided (DC5), and of several
    stages with one stride the deepest is taken.

    Raises UserError for a name, option or stride that timm's model does not have, and for a prefix in
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
            _load(self.body, config.weights)
        if config.norm == "frozen":
            self.body = freeze_batch_norm_2d(self.body)
        for prefix in config.freeze:
            found = [p for name, p in self.body.named_parameters() if name.startswith(f"{prefix}.")]
            if not found:
                parts = ", ".join(name for name, _ in self.body.named_children())
                raise UserError(f"{WHERE}.freeze: {config.name} has no parameters in {prefix!r} (it has: {parts})")
            for parameter in found:
                parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.body(images)
        # Swin-like models give their maps channels last.
        return [m if m.shape[1] == c else m.permute(0, 3, 1, 2) for m, c in zip(maps, self.channels, strict=True)]


def _create(config: BackboneConfig, **more: Any) -> Any:
    """timm's feature extractor for a config; its complaints become one line."""
    if not timm.is_model(config.name):
        close = difflib.get_close_matches(config.name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise UserError(f"{WHERE}.name: timm has no model {config.name!r}{hint}")
    if config.dilation:
        more["output_stride"] = 16
    try:
        return timm.create_model(config.name, pretrained=False, features_only=True, **config.options, **more)
    except (TypeError, RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        what = f"options {config.options}" + (" and dilation" if config.dilation else "")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{WHERE}: timm cannot make features of {config.name} with {what}: {reason}") from error


def _load(body: nn.Module, path: str) -> None:
    """Load a state dict, such as torchvision's ResNet-50, leaving out what features do not need.

    It is read and compared on the meta device too, where there is nowhere to load it.
    """
    if not Path(path).is_file():
        raise UserError(f"{WHERE}.weights: there is no file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        shapes = {name: tensor.shape for name, tensor in state.items()}
    except Exception as error:  # whatever the file holds
        raise UserError(f"{WHERE}.weights: {path} is not a state dict ({type(error).__name__})") from error
    wanted = {name: tensor for name, tensor in body.state_dict().items() if not name.endswith("num_batches_tracked")}
    if missing := [name for name in wanted if name not in shapes]:
        raise UserError(f"{WHERE}.weights: {path} lacks {len(missing)} tensors of the backbone, such as {missing[0]!r}")
    for name, tensor in wanted.items():
        if shapes[name] != tensor.shape:
            raise UserError(
                f"{WHERE}.weights: {name!r} is {tuple(shapes[name])} in {path}, the backbone's is {tuple(tensor.shape)}"
            )
    if not next(body.parameters()).is_meta:
        body.load_state_dict(state, strict=False)
