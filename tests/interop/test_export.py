"""Models exported to Hugging Face folders: the same outputs in transformers 4.57.6, and the same weights back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.oracles import CASES, Case, padded_batch, perturb, small_model

import attnzoo
from attnzoo import interop, models
from attnzoo.errors import UserError
from attnzoo.interop.hub import HubModel
from attnzoo.models.detr.detector import Detector

transformers = pytest.importorskip("transformers")


def trained(case: Case) -> Detector:
    model = small_model(case)
    perturb(model)
    return model


EXPORTED = {name: case.preset for name, case in CASES.items()} | {
    "dc5": "detr_r50_dc5",
    "single_scale_dc5": "deformable_detr_r50_single_scale_dc5",
}


@torch.no_grad()
@pytest.mark.parametrize("preset", EXPORTED.values(), ids=EXPORTED)
def test_detectors(preset: str, tmp_path: Path) -> None:
    model = trained(Case(preset, {}))
    names = ["ant", "bee", "cat", "dog", "emu"]
    folder = interop.export_huggingface(model, tmp_path / "folder", names)
    reference, info = transformers.AutoModelForObjectDetection.from_pretrained(folder, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert reference.config.id2label == dict(enumerate(names))
    images, mask, _ = padded_batch()
    expected = reference.eval()(images, pixel_mask=(~mask).long())
    output = model(images, mask)
    torch.testing.assert_close(output.logits[-1], expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.boxes[-1], expected.pred_boxes, atol=1e-5, rtol=0)
    again = small_model(Case(preset, {}))
    report = interop.load(again, folder)
    assert (report.missing, report.reshaped, report.skipped) == ({}, {}, [])
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_preprocessing_is_read_by_transformers(tmp_path: Path) -> None:
    interop.export_huggingface(trained(CASES["multi_scale"]), tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
    assert type(processor).__name__ == "DeformableDetrImageProcessor"
    assert processor.size == {"shortest_edge": 800, "longest_edge": 1333}


@pytest.mark.parametrize(
    ("augment", "shape"),
    [
        ({"name": "detr", "eval_scale": 96, "max_size": 120}, (96, 114)),
        ({"name": "detr", "eval_scale": 90, "max_size": 95}, (80, 95)),
        ({"name": "none"}, (64, 76)),
    ],
    ids=["shorter_side", "longer_side", "as_they_are"],
)
def test_images_are_resized_as_in_evaluation(augment: dict[str, Any], shape: tuple[int, int], tmp_path: Path) -> None:
    """They were resized to 800 pixels, whatever the model was trained on."""
    interop.export_huggingface(trained(CASES["multi_scale"]), tmp_path, augment=augment)
    image = np.random.default_rng(0).integers(0, 255, (64, 76, 3), dtype=np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
    assert processor(Image.fromarray(image), return_tensors="pt")["pixel_values"].shape[2:] == shape
    assert attnzoo.load_model(tmp_path).preprocess(image).shape[1:] == shape


@torch.no_grad()
def test_swin(tmp_path: Path) -> None:
    stages: dict[str, Any] = {
        f"stage{i + 1}": {"dim": 12 * 2**i, "heads": 3 * 2**i, "depth": 2, "first": {"window": 4}} for i in range(4)
    }
    for stage in stages.values():
        stage["second"] = {"window": 4, "shift": 2}
    model = models.create("swin_tiny", num_classes=5, image_size=128, **stages).eval()
    perturb(model)
    folder = interop.export_huggingface(model, tmp_path)
    reference, info = transformers.AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    fresh = type(reference)(reference.config).state_dict()
    for name, tensor in reference.eval().state_dict().items():
        assert not name.endswith("relative_position_index") or torch.equal(tensor, fresh[name])
    x = torch.randn(2, 3, 256, 384, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(x), reference(x, interpolate_pos_encoding=True).logits, atol=1e-5, rtol=0)
    again = models.create("swin_tiny", num_classes=5, image_size=128, **stages)
    interop.load(again, folder)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        (
            "deformable_detr_r50",
            {"neck": {"fpn": True}},
            r"model\.neck\.fpn = true: the Deformable DETR of .* has false",
        ),
        ("detr_r50", {"decoder": {"norm": False}}, r"model\.decoder\.norm = false: the DETR of transformers has true"),
        (
            "deformable_detr_r50",
            {"encoder": {"attention": {"name": "window"}}},
            r"model\.encoder\.attention\.name = 'window'",
        ),
        ("dat_pico", {}, r"model\.patch_embed = 'overlap': the Swin of transformers has 'patch'"),
    ],
)
def test_models_that_transformers_does_not_have(
    preset: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with torch.device("meta"):
        model = models.create(preset, **changes)
    with pytest.raises(UserError, match=message):
        interop.export_huggingface(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@torch.no_grad()
def test_hub_folder(tmp_path: Path) -> None:
    model = trained(CASES["two_stage"])
    HubModel.of(model).save_pretrained(tmp_path)
    again = HubModel.from_pretrained(tmp_path).model
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    images, mask, _ = padded_batch()
    assert torch.equal(again(images, mask).logits, model(images, mask).logits)
    third = small_model(CASES["two_stage"])
    assert not interop.load(third, tmp_path).missing
    assert torch.equal(third.heads.classes[2].weight, model.heads.classes[2].weight)


def test_what_cannot_be_read_or_written_is_one_line(tmp_path: Path) -> None:
    """It was a TypeError about arguments of HubModel, and a FileExistsError."""
    model = small_model(CASES["detr"])
    interop.export_huggingface(model, tmp_path / "transformers")
    for folder in (tmp_path, tmp_path / "transformers"):
        with pytest.raises(UserError, match=r"no config\.json that HubModel\.save_pretrained wrote; attnzoo\.load"):
            HubModel.from_pretrained(folder)
    with pytest.raises(UserError, match=r"folder = .*config\.json: is a file; name a folder"):
        interop.export_huggingface(model, tmp_path / "transformers" / "config.json")


def test_hub_folder_of_a_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = models.create("dat_pico", num_classes=3)
    HubModel.of(model).save_pretrained("~/model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    again = HubModel.from_pretrained("~/model").model
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
