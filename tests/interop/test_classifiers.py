"""Swin, DAT and ResNet written in every layout that is read, against timm, transformers, torchvision and float64."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from support.dat_model import PublishedModel
from support.dat_state import Sizes, published, published_plus
from support.layouts import transformers_5
from support.oracles import perturb
from torch import Tensor, nn

from attnzoo import interop, models
from attnzoo.errors import UserError
from attnzoo.interop.describe import describe
from attnzoo.models.backbone import Backbone
from attnzoo.models.config import BackboneConfig
from attnzoo.models.vit.classifier import Classifier

CLASSES = 5
SWIN: dict[str, Any] = {"embed_dim": 12, "window_size": 4}
DEPTHS, HEADS = (2, 2, 2, 2), (3, 6, 12, 24)


def swin(**changes: Any) -> Classifier:
    stages = {
        f"stage{i + 1}": {"dim": 12 * 2**i, "heads": 3 * 2**i, "depth": 2, "first": {"window": 4}} for i in range(4)
    }
    for stage in stages.values():
        stage["second"] = {"window": 4, "shift": 2}
    return models.create("swin_tiny", **{"num_classes": CLASSES, **stages, **changes}).eval()


@pytest.fixture(scope="module")
def timm_swin() -> nn.Module:
    torch.manual_seed(0)
    options: dict[str, Any] = {"depths": DEPTHS, "num_heads": HEADS, **SWIN}
    model = timm.models.SwinTransformer(img_size=(256, 128), num_classes=CLASSES, **options)
    perturb(model)
    return model.eval()


def microsoft(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names as the authors have them: downsampling ends a layer, indices and masks are saved."""
    renamed = {
        "layers.0.blocks.1.attn_mask": torch.zeros(1),
        "layers.0.blocks.1.attn.relative_position_index": torch.zeros(1),
    }
    for name, tensor in state.items():
        if ".downsample." in name:
            _, layer, rest = name.split(".", 2)
            name = f"layers.{int(layer) - 1}.{rest}"
        renamed[name.replace("head.fc.", "head.")] = tensor
    return renamed


@torch.no_grad()
@pytest.mark.parametrize("layout", ["microsoft", "timm", "timm safetensors"])
def test_swin(timm_swin: nn.Module, layout: str, tmp_path: Path) -> None:
    state, path = timm_swin.state_dict(), tmp_path / "swin.pth"
    if layout == "microsoft":
        torch.save({"model": microsoft(state)}, path)
    elif layout == "timm":
        torch.save(state, path)
    else:
        path = tmp_path / "model.safetensors"
        save_file(state, path)
    model = swin()
    report = interop.load(model, path)
    assert layout.split()[0] in report.source
    assert (report.missing, report.skipped) == ({}, [])
    x = torch.randn(2, 3, 256, 128, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(x), timm_swin(x), atol=1e-5, rtol=0)


def test_position_bias_of_windows_that_are_not_square(timm_swin: nn.Module) -> None:
    """It cannot be told how high and wide they are."""
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    with pytest.raises(
        UserError,
        match=r"size mismatch for layers\.0\..*bias_table \(.*\): \(21, 3\) in the file, \(49, 3\) in the model",
    ):
        interop.load(swin(), {**timm_swin.state_dict(), name: torch.zeros(21, 3)})


def test_parts_of_other_sizes_are_named() -> None:
    """transformers keeps query, key and value apart; here they are one tensor."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(depths=list(DEPTHS), num_heads=list(HEADS), num_labels=CLASSES, **SWIN)
    state = transformers.SwinForImageClassification(config).state_dict()
    name = "swin.encoder.layers.0.blocks.0.attention.self.key.weight"
    with pytest.raises(
        UserError, match=r"the tensors that make up .*qkv.*weight have the sizes \(12, 12\), \(12, 5\), "
    ):
        interop.load(swin(), {**state, name: torch.zeros(12, 5)})


@torch.no_grad()
@pytest.mark.parametrize("layout", ["safetensors", "bin", "5"])
def test_swin_of_transformers(layout: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(depths=list(DEPTHS), num_heads=list(HEADS), num_labels=CLASSES, **SWIN)
    torch.manual_seed(0)
    reference = transformers.SwinForImageClassification(config).eval()
    perturb(reference)
    if layout == "5":
        save_file(transformers_5(reference.state_dict()), tmp_path / "model.safetensors")
    else:
        reference.save_pretrained(tmp_path, safe_serialization=layout == "safetensors")
    model = swin()
    report = interop.load(model, tmp_path)
    assert (report.missing, report.skipped) == ({}, [])
    x = torch.randn(2, 3, 256, 384, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(x), reference(x, interpolate_pos_encoding=True).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_swin_as_backbone_of_timm(timm_swin: nn.Module, tmp_path: Path) -> None:
    """timm extracts features with other names than it classifies with."""
    torch.save(timm_swin.state_dict(), tmp_path / "swin.pth")
    options = {"img_size": (256, 128), "depths": DEPTHS, "num_heads": HEADS, **SWIN}
    config = BackboneConfig(
        "swin_tiny_patch4_window7_224", options, [4, 32], norm="trained", weights=str(tmp_path / "swin.pth")
    )
    x = torch.randn(1, 3, 256, 128, generator=torch.Generator().manual_seed(1))
    expected = timm_swin.forward_intermediates(x, indices=[0, 3], intermediates_only=True)
    for actual, each in zip(Backbone(config).eval()(x), expected, strict=True):
        torch.testing.assert_close(actual, each, atol=1e-5, rtol=1e-5)


DAT_WIDTHS: dict[str, Any] = {"dims": (8, 16, 24, 32), "head_dim": 4, "side": 16, "classes": CLASSES}
DAT = {
    "dat_tiny": (Sizes(**DAT_WIDTHS, depths=(2, 2, 4, 2), groups=(0, 0, 3, 4), window=2), published),
    "dat_pp_tiny": (Sizes(**DAT_WIDTHS, depths=(2, 2, 4, 2), groups=(1, 2, 3, 4), window=3), published_plus),
}


@torch.no_grad()
@pytest.mark.parametrize("preset", DAT)
def test_dat(preset: str, tmp_path: Path) -> None:
    sizes, written = DAT[preset]
    torch.manual_seed(0)
    state = written(sizes)
    torch.save({"model": dict(state), "epoch": 299}, tmp_path / "dat.pth")
    local = {"kernel": sizes.window} if preset == "dat_pp_tiny" else {"window": sizes.window}
    changes: dict[str, Any] = {}
    for stage in range(4):
        second = {"groups": sizes.groups[stage]} if sizes.groups[stage] else {"window": sizes.window, "shift": 1}
        changes[f"stage{stage + 1}"] = {
            "dim": sizes.dims[stage],
            "depth": sizes.depths[stage],
            "heads": sizes.heads(stage),
            "second": second,
            **({"first": local} if stage < 3 or "window" in local else {}),
        }
    model = models.create(preset, num_classes=CLASSES, image_size=4 * sizes.side, **changes).eval()
    report = interop.load(model, tmp_path / "dat.pth")
    assert report.source.startswith("DAT++" if preset == "dat_pp_tiny" else "DAT of CVPR")
    assert not report.missing
    image = torch.randn(3, 64, 64, dtype=torch.float64)
    expected = PublishedModel(sizes, {name: tensor.double() for name, tensor in state.items()})(image)
    torch.testing.assert_close(model.double()(image[None])[0], expected, atol=1e-10, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_resnet(library: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference: Any = torchvision.models.resnet18() if library == "torchvision" else timm.create_model("resnet18")
    perturb(reference)
    torch.save(reference.state_dict(), tmp_path / "resnet.pth")
    config = BackboneConfig("resnet18", strides=[16, 32], weights=str(tmp_path / "resnet.pth"))
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    reference.double().eval()
    pool = reference.maxpool
    x3 = reference.layer3(reference.layer2(reference.layer1(pool(reference.bn1(reference.conv1(x)).relu()))))
    for actual, expected in zip(Backbone(config).double().eval()(x), (x3, reference.layer4(x3)), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-8, rtol=1e-8)
    description = describe(str(tmp_path / "resnet.pth"))
    assert description.source == "ResNet (torchvision, timm)"
    assert f"load it: model.backbone.name=resnet18 model.backbone.weights={tmp_path / 'resnet.pth'}" in str(description)


def test_which_resnet_a_file_is_of(tmp_path: Path) -> None:
    """The numbers of blocks leave several."""
    for name in ("resnet34", "resnet50", "wide_resnet50_2", "resnet101"):
        torch.save({"model": torchvision.models.get_model(name, weights=None).state_dict()}, tmp_path / "file.pth")
        assert describe(str(tmp_path / "file.pth")).presets == [name]
    torch.save(timm.create_model("resnet26").state_dict(), tmp_path / "file.pth")
    assert "preset: none; for model.backbone.weights" in str(describe(str(tmp_path / "file.pth")))
