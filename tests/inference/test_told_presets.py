"""Which model files of weights are of, where their names do not tell it alone."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from support.drawn import picture
from support.userdata import coco

import attnzoo
from attnzoo import interop, models
from attnzoo.__main__ import main
from attnzoo.errors import UserError
from attnzoo.inference.settings import Trained, read_trained
from attnzoo.interop.describe import describe
from attnzoo.models.weights.sources import named
from attnzoo.userdata.new import new_experiment
from attnzoo.userdata.read import read_folder


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resnet") / "resnet18.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


def test_a_backbone_alone_predicts_nothing(resnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was taken for a preset, which ended in a StopIteration."""
    message = (
        "ResNet (torchvision, timm), without a class head: nothing to predict with; a detector takes a backbone as"
    )
    image = str(picture(tmp_path / "a.png"))
    for arguments in (
        ["predict", image, "-o", "out"],
        ["eval"],
        ["draw", image, "-o", "a.svg"],
        ["export", "-o", "a.pt2"],
    ):
        command, *rest = arguments
        assert main([command, str(resnet), *rest]) == 2
        assert capsys.readouterr().err == f"error: {resnet}: {message} model.backbone.weights\n"


def test_weights_of_a_backbone_say_what_is_loaded(resnet: Path) -> None:
    lines = str(describe(str(resnet))).splitlines()
    assert lines[-2:] == [
        "ResNet (torchvision, timm): 100 loaded, 0 of them reshaped; 0 missing; 2 skipped",
        "  skipped  fc (2 tensors)",
    ]


def test_a_new_experiment_does_not_start_from_a_backbone(resnet: Path, tmp_path: Path) -> None:
    """It was taken for the preset of a classifier."""
    with pytest.raises(UserError, match=r"without a class head"):
        new_experiment("mine", read_folder(coco(tmp_path / "data")), str(resnet), folder=tmp_path)


def published(preset: str, source: str) -> dict[str, torch.Tensor]:
    """A state dict of zeros, which take no memory."""
    with torch.device("meta"):
        state = named(source).export(models.create(preset).state_dict())
    return {name: torch.zeros(1).expand(each.shape) for name, each in state.items()}


def is_dilated(trained: Trained) -> bool:
    model: Any = trained.settings.model
    return bool(model.backbone.dilation)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "other", "source"),
    [
        ("detr_r50", "detr_r50_dc5", "detr"),
        ("deformable_detr_r50_single_scale", "deformable_detr_r50_single_scale_dc5", "deformable_detr"),
    ],
)
def test_presets_that_the_names_do_not_tell_apart(
    preset: str, other: str, source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = {"model": published(preset, source)}
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with caplog.at_level(logging.WARNING):
        assert not is_dilated(read_trained(path))
    assert f"taken as {preset}, but may be {other}, " in caplog.text
    assert f"--preset {other}, in Python preset='{other}'" in caplog.text
    caplog.clear()
    assert is_dilated(read_trained(path, other))
    torch.save(content | {"args": {"dilation": True}}, path)
    assert is_dilated(read_trained(path))
    assert not caplog.records


OTHERS = {
    "another detector": (
        "detr_r50",
        ("deformable_detr_r50", "deformable_detr"),
        "has 2 unexpected keys, such as 'transformer.reference_points.bias'; these are weights of Deformable DETR "
        "(fundamentalvision/Deformable-DETR), which fit the preset deformable_detr_r50 or",
    ),
    "another classifier": (
        "dat_tiny",
        ("swin_tiny", "swin"),
        "has 3 unexpected keys, such as 'layers.0.downsample.reduction.weight'; these are weights of Swin "
        "(microsoft/Swin-Transformer), which fit the preset swin_tiny",
    ),
    "another task": (
        "detr_r50",
        ("swin_tiny", "swin"),
        "these are weights of Swin (microsoft/Swin-Transformer), none of which fits a Detector; they fit the preset "
        "swin_tiny",
    ),
    "without a second stage": (
        "deformable_detr_r50_two_stage",
        ("deformable_detr_r50_refine", "deformable_detr"),
        "has 3 unexpected keys, such as 'query_embed.weight'; these are weights of Deformable DETR "
        "(fundamentalvision/Deformable-DETR), which fit the preset deformable_detr_r50 or deformable_detr_r50_refine",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_refused_weights_are_named(name: str, tmp_path: Path) -> None:
    """The message had names of the model, and did not say what the file was."""
    preset, file, message = OTHERS[name]
    state = published(*file)
    with torch.device("meta"):
        model = models.create(preset)
    with pytest.raises(UserError, match=re.escape(message)):
        interop.load(model, state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=re.escape(message)), torch.device("meta"):
        models.create(preset, weights=str(tmp_path / "weights.pth"))


@pytest.mark.slow
def test_a_preset_that_weights_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(models.create("swin_pico", num_classes=3).state_dict(), path)
    with pytest.raises(UserError, match=r"; these are weights of .* of attnzoo, which fit the preset swin_pico\Z"):
        attnzoo.load_model(path, preset="dat_pico")
