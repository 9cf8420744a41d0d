"""Whole models exported to ONNX as docs/operators.md describes, run in onnxruntime."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from support.models import CLASSES, tiny
from torch import Tensor, nn

from attnzoo import models, ops

HEIGHT, WIDTH = 64, 96

SINGLE: dict[str, Any] = {"backbone": {"strides": [32]}}
DC5: dict[str, Any] = {"backbone": {"strides": [16], "dilation": True}}
MULTI: dict[str, Any] = {"backbone": {"strides": [8, 16, 32]}, "neck": {"c6": True}}
VIT_BACKBONE = {"name": "dat_pico", "options": {"stage4": {"depth": 0}}, "norm": "frozen", "strides": [16]}
DETECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "detr": ("detr_r50", SINGLE),
    "detr_dc5": ("detr_r50_dc5", DC5),
    "deformable": ("deformable_detr_r50", MULTI),
    "refine": ("deformable_detr_r50_refine", MULTI),
    "two_stage": ("deformable_detr_r50_two_stage", MULTI),
    "single_scale": ("deformable_detr_r50_single_scale", SINGLE),
    "single_scale_dc5": ("deformable_detr_r50_single_scale_dc5", DC5),
    "dat_backbone": ("deformable_detr_r50_single_scale", {"backbone": VIT_BACKBONE}),
}
VITS = {"swin_tiny": (16, (1, 2, 4, 8)), "dat_tiny": (24, (3, 3, 3, 6)), "dat_pp_tiny": (16, (1, 2, 4, 8))}


def trained(model: nn.Module) -> nn.Module:
    """The model with every weight and statistic moved from its initial value, as after training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def images(masked: bool) -> tuple[Tensor, ...]:
    """Two images, and, if `masked`, their padding mask: the second is padded at the bottom and right."""
    batch = torch.randn(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2))
    if not masked:
        return (batch,)
    mask = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    mask[1, HEIGHT - 16 :] = mask[1, :, WIDTH - 20 :] = True
    return batch, mask


@torch.no_grad()
def check_in_onnx(model: nn.Module, args: tuple[Tensor, ...], file: Path) -> None:
    """Export the model, and compare its outputs in onnxruntime on other images with those in PyTorch."""
    program = torch.export.export(model, args).run_decompositions(ops.decompositions())
    torch.onnx.export(program, opset_version=20, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    other = (1 - args[0], *(mask.flip(0) for mask in args[1:]))
    names = [entry.name for entry in session.get_inputs()]
    outputs = session.run(None, {name: arg.numpy() for name, arg in zip(names, other, strict=True)})
    for output, expected, of_example in zip(outputs, results(model(*other)), results(model(*args)), strict=True):
        np.testing.assert_allclose(output, expected.numpy(), atol=1e-4)
        assert (expected - of_example).abs().max() > 1e-3  # the images matter


def results(output: Any) -> list[Tensor]:
    """The tensors that a classifier or a detector returns."""
    if isinstance(output, Tensor):
        return [output]
    fields = (getattr(output, field.name) for field in dataclasses.fields(output))
    return [field for field in fields if field is not None]


def test_a_one_stage_detector(tmp_path: Path) -> None:
    """Its decoder layers have the same reference points."""
    model = tiny("deformable_detr_r50_single_scale", backbone={"strides": [32]}, encoder={"layers": 0})
    check_in_onnx(trained(model), images(masked=True), tmp_path / "detector.onnx")


LONG = ("refine", "single_scale", "single_scale_dc5")  # of the others' parts


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True], ids=["unpadded", "padded"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in DETECTORS]
)
def test_detectors(name: str, masked: bool, tmp_path: Path) -> None:
    preset, overrides = DETECTORS[name]
    model = tiny(preset, encoder={"layers": 2}, decoder={"layers": 3}, **overrides)
    check_in_onnx(trained(model), images(masked), tmp_path / "detector.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("preset", VITS)
def test_classifiers(preset: str, tmp_path: Path) -> None:
    dim, heads = VITS[preset]
    stages = {
        f"stage{index + 1}": {"dim": dim * 2**index, "depth": 2, "heads": number} for index, number in enumerate(heads)
    }
    torch.manual_seed(0)
    model = models.create(preset, num_classes=CLASSES, image_size=HEIGHT, **stages)
    check_in_onnx(trained(model), images(masked=False), tmp_path / "classifier.onnx")
