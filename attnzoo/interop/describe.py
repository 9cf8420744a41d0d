"""What a file of weights is: its source, the presets that it fits, and what would be loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnzoo import models
from attnzoo.errors import UserError, plural
from attnzoo.models import presets
from attnzoo.models.backbone import Backbone
from attnzoo.models.config import BackboneConfig
from attnzoo.models.weights import Fit, files, fit, match, sources

# by the number of blocks in each stage
RESNETS: dict[tuple[int, ...], tuple[str, ...]] = {
    (2, 2, 2, 2): ("resnet18",),
    (3, 4, 6, 3): ("resnet50", "resnet34", "wide_resnet50_2", "resnext50_32x4d"),
    (3, 4, 23, 3): ("resnet101", "wide_resnet101_2", "resnext101_32x8d"),
    (3, 8, 36, 3): ("resnet152",),
}
SAME_SHAPES = "told apart by their dilation alone, which weights do not show"


@dataclass(frozen=True)
class Description:
    """A file of weights. `presets` fit it exactly, except for the number of classes; of a backbone, names of backbones.

    `told_by` is the config beside the file that says which model it is of; None without one.
    """

    path: str
    source: str  # title of the source
    num_tensors: int
    num_values: int
    num_classes: int | None  # None for a backbone
    presets: list[str]
    nearest: str | None  # the preset that fits best
    report: str  # of loading into the nearest preset, or the model of the config
    told_by: str | None = None
    how: str = ""  # how to load it into the model of the config

    def __str__(self) -> str:
        classes = "" if self.num_classes is None else f", {plural(self.num_classes, 'class', 'classes')}"
        lines = [
            f"{self.path}: {self.source}",
            f"{plural(self.num_tensors, 'tensor')}, {self.num_values / 1e6:.1f} M values{classes}",
        ]
        if self.told_by is not None:
            same = f", which is {self.presets[0]}" if self.presets else ""
            lines += [f"model: that of {self.told_by}{same}", f"load it: {self.how}"]
            return "\n".join([*lines, self.report])
        if self.num_classes is None and self.presets:
            load = f"load it: model.backbone.name={self.presets[0]} model.backbone.weights={self.path}"
            return "\n".join([*lines, f"backbone: {self.presets[0]}", load, self.report])
        if self.nearest is None:
            return "\n".join([*lines, "preset: none; for model.backbone.weights", self.report])
        if self.presets:
            note = f" ({SAME_SHAPES})" if len(self.presets) > 1 else ""
            lines.append(f"preset: {', '.join(self.presets)}{note}")
            lines.append(f"load it: model.preset={self.presets[0]} model.weights={self.path}")
        else:
            lines.append(f"preset: none fits; the nearest is {self.nearest}")
        return "\n".join([*lines, self.report])


def describe(path: str, source: str = sources.AUTO) -> Description:
    """Say what a file, run folder or Hugging Face folder holds; builds the presets on the meta device.

    Raises UserError if it is not a file of weights, or of no known source.
    """
    return describe_content(files.read_content(path), path, source)


def describe_content(content: files.Content, path: str, source: str = sources.AUTO) -> Description:
    """As `describe`, of a file that was read."""
    state = content.state
    found, unwrapped = _detect(state, path, source)
    sizes = _sizes(state)
    if found.model == "backbone":
        depths = _depths(unwrapped)
        blocks = f"{len(unwrapped)} tensors; blocks in layer1 … layer4: {', '.join(map(str, depths))}"
        bodies = {name: _fit_backbone(state, name, path) for name in RESNETS.get(depths, ())}
        names = [name for name, result in bodies.items() if match.is_exact(result)]
        loaded = [_report(bodies[names[0]], True)] if names else []
        return Description(path, found.title, *sizes, None, names, None, "\n".join([blocks, *loaded]))
    num_classes = match.num_classes(found.convert(unwrapped, (), path).tensors)
    fits = match.fits(state, source, match.family_of(found), num_classes)
    exact = [name for name, result in fits.items() if match.is_exact(result)]
    exact = _with_dilation(exact, content.options) or exact
    if not fits:
        return Description(path, found.title, *sizes, num_classes, [], None, "fits no preset")
    nearest = exact[0] if exact else min(fits, key=lambda name: _distance(fits[name]))
    return Description(path, found.title, *sizes, num_classes, exact, nearest, _report(fits[nearest], bool(exact)))


def describe_fit(
    content: files.Content, path: str, source: str, model: nn.Module, num_classes: int | None
) -> Description:
    """As `describe_content`, for a model that is known. Raises UserError if none of the weights fits it."""
    found, _ = _detect(content.state, path, source)
    result = fit(model, content.state, source, path)
    report = _report(result, not result.problems)
    return Description(path, found.title, *_sizes(content.state), num_classes, [], None, report)


def _detect(state: Mapping[str, Tensor], path: str, source: str) -> tuple[sources.Source, dict[str, Tensor]]:
    found, unwrapped, _ = sources.detect(state, source)
    if found is None:
        raise UserError(f"{path}: {sources.unrecognized(state, source)}")
    return found, unwrapped


def _sizes(state: Mapping[str, Tensor]) -> tuple[int, int]:
    return len(state), sum(tensor.numel() for tensor in state.values())


def _report(result: Fit, fits: bool) -> str:
    problems = [] if fits else [f"  does not fit: {problem}" for problem in result.problems[:3]]
    without = result.without_values()
    refused = [f"  is refused: {without}"] if without else []
    return "\n".join([str(result.report), *problems, *refused])


def _with_dilation(exact: list[str], options: Mapping[str, Any]) -> list[str]:
    """Of detectors told apart by their dilation alone, those that the file's options name; all without options."""
    dilated = options.get("dilation")
    if not isinstance(dilated, bool):
        return exact
    detectors = set(models.names(family="detector"))
    return [
        name
        for name in exact
        if name not in detectors or presets.detector_config(name, {}).backbone.dilation == dilated
    ]


def _distance(result: Fit) -> tuple[int, int]:
    return len(result.problems) + len(result.report.missing), len(result.report.skipped)


def class_logits(state: Mapping[str, Tensor], source: str = sources.AUTO) -> int | None:
    """The number of logits of the class head in a state dict; None without one, or of no known source."""
    found, unwrapped, _ = sources.detect(state, source)
    tensors = {} if found is None else found.convert(unwrapped, ()).tensors
    return match.logits(tensors)


def _fit_backbone(state: Mapping[str, Tensor], name: str, path: str) -> Fit:
    """What would be loaded into the ResNet of this name."""
    with torch.device("meta"):
        body = Backbone(BackboneConfig(name, strides=[4, 8, 16, 32], norm="trained")).body
    return fit(body, state, path=path)


def _depths(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    names = [name.split(".") for name in state]
    return tuple(len({parts[1] for parts in names if parts[0] == f"layer{stage}"}) for stage in range(1, 5))
