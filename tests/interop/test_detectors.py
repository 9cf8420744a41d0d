"""Detectors written in every layout that is read, against transformers 4.57.6."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.layouts import official, save_official, transformers_5
from support.losses import CLASSES
from support.oracles import CASES, DIM, LAYERS, QUERIES, Case, padded_batch, perturb, small_model, transformers_model
from torch import Tensor

from attnzoo import interop, models
from attnzoo.errors import UserError
from attnzoo.interop.describe import describe
from attnzoo.models.detr.detector import Detector
from attnzoo.models.weights.sources import named

pytest.importorskip("transformers")


@dataclass
class Reference:
    case: Case
    model: Any
    state: dict[str, Tensor]
    detector: Detector  # loaded from a file of the authors' layout


@pytest.fixture(scope="module", params=CASES)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    case = CASES[request.param]
    model = transformers_model(case)
    state = dict(model.state_dict())
    path = save_official(official(state, dense=case.dense), tmp_path_factory.mktemp("official") / "weights.pth")
    detector = small_model(case)
    report = interop.load(detector, path)
    assert (report.missing, report.reshaped, report.skipped) == ({}, {}, [])
    assert report.source.startswith("DETR (facebook" if case.dense else "Deformable DETR (fundamental")
    return Reference(case, model, state, detector)


@torch.no_grad()
def test_published_layout_gives_the_same_outputs(reference: Reference) -> None:
    images, mask, _ = padded_batch()
    expected = reference.model(images, pixel_mask=(~mask).long())
    output = reference.detector(images, mask)
    torch.testing.assert_close(output.logits[-1], expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.boxes[-1], expected.pred_boxes, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["safetensors", "bin", "bin shards", "5"])
def test_layouts_of_transformers(reference: Reference, layout: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    # transformers 4.57.6 cannot write refined models as safetensors: two names share each box head
    unshared = {name: tensor.clone() for name, tensor in reference.state.items() if ".decoder.bbox_" not in name}
    if layout == "5" or (layout == "safetensors" and reference.detector.config.head.refine):
        folder.mkdir()
        save_file(transformers_5(unshared) if layout == "5" else unshared, folder / "model.safetensors")
    else:
        size = "300KB" if layout == "bin shards" else "5GB"
        reference.model.save_pretrained(folder, safe_serialization=layout == "safetensors", max_shard_size=size)
        assert (folder / "pytorch_model.bin.index.json").exists() == (layout == "bin shards")
    detector = small_model(reference.case)
    report = interop.load(detector, folder)
    assert not report.missing
    assert not report.skipped
    expected = reference.detector.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in detector.state_dict().items())


@torch.no_grad()
def test_wrappers_are_removed(reference: Reference) -> None:
    state = official(reference.state, dense=reference.case.dense)
    for prefix in ("module.", "detr.", "module.model."):
        detector = small_model(reference.case)
        wrapped = {f"{prefix}{name}": tensor for name, tensor in state.items()}
        report = interop.load(detector, {"epoch": 3, "state_dict": wrapped})
        assert not report.missing
        assert torch.equal(detector.heads.classes[0].weight, reference.detector.heads.classes[0].weight)


def test_a_name_that_every_file_has_is_named(reference: Reference) -> None:
    state = official(reference.state, dense=reference.case.dense)
    absent = "class_embed.weight" if reference.case.dense else "input_proj.0.0.weight"
    part = absent.split(".")[0]
    with pytest.raises(UserError, match=rf"which has (\d+) of \1 names; {absent} is missing"):
        interop.load(small_model(reference.case), {name: each for name, each in state.items() if part not in name})


def dilated_model(dense: bool) -> Any:
    """DC5 with a ResNet of timm, whose names the file then has."""
    from transformers import (
        DeformableDetrConfig,
        DeformableDetrForObjectDetection,
        DetrConfig,
        DetrForObjectDetection,
    )

    options: dict[str, Any] = {
        "backbone": "resnet50",
        "use_timm_backbone": True,
        "use_pretrained_backbone": False,
        "backbone_kwargs": {"layers": [1, 1, 1, 1], "channels": [4, 8, 16, 32], "out_indices": [4]},
        "dilation": True,
        "num_labels": CLASSES,
        "num_queries": QUERIES,
        "d_model": DIM,
        "dropout": 0.0,
        **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 128 for part in ("encoder", "decoder")},
        "encoder_layers": 2,
        "decoder_layers": LAYERS,
    }
    torch.manual_seed(0)
    if dense:
        model: Any = DetrForObjectDetection(DetrConfig(**options))
    else:
        model = DeformableDetrForObjectDetection(DeformableDetrConfig(num_feature_levels=1, **options))
    perturb(model)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("preset", ["detr_r50_dc5", "deformable_detr_r50_single_scale_dc5"])
def test_dilated_backbone(preset: str, tmp_path: Path) -> None:
    dense = preset.startswith("detr")
    reference = dilated_model(dense)
    images, mask, _ = padded_batch()
    expected = reference(images, pixel_mask=(~mask).long())
    published = save_official(official(dict(reference.state_dict()), dense=dense), tmp_path / "dc5.pth")
    reference.save_pretrained(tmp_path / "folder")
    for path in (published, tmp_path / "folder"):
        detector = small_model(Case(preset, {}))
        interop.load(detector, path)
        output = detector(images, mask)
        torch.testing.assert_close(output.logits[-1], expected.logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(output.boxes[-1], expected.pred_boxes, atol=1e-5, rtol=0)


# Tensors in the published files, without those that are there under two names.
PUBLISHED = {
    "detr_r50": 458,
    "deformable_detr_r50_single_scale": 549,
    "deformable_detr_r50": 561,
    "deformable_detr_r50_refine": 597 - 36,
    "deformable_detr_r50_two_stage": 630 - 56,
    "detr_r101": 458 + 17 * 15,
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_every_published_tensor_has_a_place(preset: str, tmp_path: Path) -> None:
    """The names of full-size presets; the file is told from them."""
    with torch.device("meta"):
        model = models.create(preset)
    source = named("detr" if preset.startswith("detr") else "deformable_detr")
    heads_differ = model.config.head.refine
    state = {
        name: torch.full((1,), float(index if heads_differ else 1)).expand(tensor.shape)
        for index, (name, tensor) in enumerate(source.export(model.state_dict()).items())
    }
    assert len(state) == PUBLISHED[preset]
    description = describe(str(save_official(state, tmp_path / "weights.pth")))
    assert description.presets[0] == preset
    assert description.num_classes == 91
    assert description.source == source.title
