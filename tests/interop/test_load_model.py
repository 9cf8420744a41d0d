"""load_model from every layout, against the source's own implementation or a loaded model."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.layouts import official, transformers_5
from support.oracles import CASES, LAYERS, QUERIES, Case, perturb, small_model, transformers_model

import attnzoo
from attnzoo import interop, models
from attnzoo.errors import UserError
from attnzoo.inference.loaded import Classes, Detections
from attnzoo.interop.describe import describe
from attnzoo.interop.huggingface import model_settings, preprocessing
from attnzoo.models.weights.sources import named

transformers = pytest.importorskip("transformers")

SIZES = [
    "model.dim=64",
    "model.heads=4",
    "model.ffn=128",
    f"model.queries={QUERIES}",
    "model.backbone.options={layers: [1, 1, 1, 1], channels: [4, 8, 16, 32]}",
    "model.encoder.layers=2",
    f"model.decoder.layers={LAYERS}",
    "data.augment={eval_scale: 128, max_size: 900}",
]
PICTURE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def expected_boxes(reference: Any, inputs: torch.Tensor, dense: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and boxes in pixels by transformers' own post-processing."""
    output = reference(inputs[None])
    family = transformers.DetrImageProcessor if dense else transformers.DeformableDetrImageProcessor
    result = family().post_process_object_detection(output, threshold=0.0, target_sizes=[PICTURE.shape[:2]])[0]
    order = result["scores"].argsort(descending=True)
    return result["scores"][order], result["boxes"][order]


@torch.no_grad()
@pytest.mark.parametrize("case", ["detr", "refine"])
def test_published_files_predict_as_transformers_does(case: str, tmp_path: Path) -> None:
    reference = transformers_model(CASES[case])
    dense = CASES[case].dense
    torch.save({"model": official(dict(reference.state_dict()), dense=dense)}, tmp_path / "weights.pth")
    model = attnzoo.load_model(tmp_path / "weights.pth", preset=CASES[case].preset, overrides=SIZES)
    (found,) = model.predict(PICTURE, threshold=0.0)
    assert isinstance(found, Detections)
    inputs = model.preprocess(PICTURE)
    assert inputs.shape == (3, 128, 192)
    scores, boxes = expected_boxes(reference, inputs, dense)
    count = min(len(scores), len(found.scores), 10)
    torch.testing.assert_close(found.scores[:count], scores[:count], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.boxes[:count], boxes[:count], atol=2e-3, rtol=0)
    assert model.class_names == [f"class {index}" for index in range(5)]
    assert found.size == (60, 90)


@pytest.mark.parametrize(
    ("name", "value"),
    [("decoder_attention_heads", 1), ("activation_function", "gelu"), ("position_embedding_type", "learned")],
)
def test_options_that_our_models_do_not_have_are_refused(name: str, value: object) -> None:
    """They loaded, and gave other outputs."""
    config = {"model_type": "detr", "encoder_attention_heads": 8, "decoder_attention_heads": 8} | {name: value}
    with pytest.raises(UserError, match=f"config.json: {name} = .*: only .* is supported"):
        model_settings(config)


@pytest.mark.parametrize(
    ("name", "value"), [("embedding_size", 16), ("model_type", "swin"), ("downsample_in_first_stage", True)]
)
def test_backbones_that_our_models_do_not_have_are_refused(name: str, value: object) -> None:
    """A narrow stem was said to lack keys."""
    backbone = {"model_type": "resnet", "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]} | {name: value}
    with pytest.raises(UserError, match=rf"config.json: backbone_config\.{name} = .*: only .* is supported"):
        model_settings({"model_type": "detr", "backbone_config": backbone})


def test_a_backbone_of_timm_by_its_own_config() -> None:
    backbone = {"model_type": "timm_backbone", "backbone": "resnet101", "out_indices": [1, 2, 3, 4]}
    told = model_settings({"model_type": "detr", "backbone_config": backbone})
    assert told is not None
    assert (told[1]["model.backbone.name"], told[1]["model.backbone.strides"]) == ("resnet101", [32])


def test_another_normalisation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 96}, "image_mean": [0.5, 0.5, 0.5]}')
    with pytest.raises(UserError, match="image_mean"):
        preprocessing(tmp_path, "detection")


@torch.no_grad()
@pytest.mark.parametrize("case", ["detr", "single_scale", "multi_scale", "two_stage"])
def test_hugging_face_folders_need_no_preset(case: str, tmp_path: Path) -> None:
    """Sizes, class names and the evaluation size are those of the folder's files."""
    reference = transformers_model(CASES[case])
    reference.config.id2label = dict(enumerate(["ant", "bee", "cat", "dog", "emu"]))
    reference.config.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items() if ".decoder.bbox_" not in name}
    save_file(transformers_5(state) if case == "detr" else state, tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 96, "longest_edge": 333}}')
    model = attnzoo.load_model(tmp_path)
    assert model.preprocess(PICTURE).shape == (3, 96, 144)
    (found,) = model.predict(PICTURE, threshold=0.0)
    scores, boxes = expected_boxes(reference, model.preprocess(PICTURE), CASES[case].dense)
    torch.testing.assert_close(found.scores[:10], scores[:10], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.boxes[:10], boxes[:10], atol=2e-3, rtol=0)
    assert model.class_names == ["ant", "bee", "cat", "dog", "emu"]
    assert {*found.names} <= {*model.class_names}


@torch.no_grad()
@pytest.mark.parametrize("preset", ["detr_r50_dc5", "deformable_detr_r50_single_scale_dc5"])
def test_folders_that_attnzoo_exported(preset: str, tmp_path: Path) -> None:
    detector = small_model(Case(preset, {}))
    perturb(detector)
    interop.export_huggingface(detector, tmp_path)
    model = attnzoo.load_model(tmp_path, overrides=["data.augment={eval_scale: 128, max_size: 900}"])
    expected = detector.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.model.state_dict().items())
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.forward(images).logits, detector(images).logits)


@torch.no_grad()
def test_swin_of_transformers(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"depths": [2, 2, 2], "num_heads": [1, 2, 4], "embed_dim": 8, "window_size": 4}
    reference = transformers.SwinForImageClassification(transformers.SwinConfig(image_size=64, num_labels=3, **sizes))
    perturb(reference)
    reference.eval().save_pretrained(tmp_path)
    assert attnzoo.load_model(tmp_path).preprocess(PICTURE).shape == (3, 64, 64)  # as config.json says
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 64, "width": 64}}')
    model = attnzoo.load_model(tmp_path)
    (found,) = model.predict(Image.fromarray(PICTURE))
    assert isinstance(found, Classes)
    expected = reference(model.preprocess(PICTURE)[None]).logits[0].softmax(-1)
    torch.testing.assert_close(found.probabilities, expected, atol=1e-5, rtol=0)
    assert found.names[0] == f"LABEL_{expected.argmax()}"


def test_weights_with_nan_are_refused(tmp_path: Path) -> None:
    """They gave predictions."""
    state = models.create("swin_pico", num_classes=3).state_dict()
    torch.save(state | {"head.bias": torch.full((3,), torch.inf)}, tmp_path / "pico.pt")
    with pytest.raises(UserError, match=r"pico\.pt has NaN, infinity or no values in head\.bias"):
        attnzoo.load_model(tmp_path / "pico.pt")


def test_classifier_preset_is_told_from_the_keys(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(models.create("swin_pico", num_classes=1000).state_dict(), tmp_path / "pico.pt")
    model = attnzoo.load_model(tmp_path / "pico.pt")
    assert model.preprocess(PICTURE).shape == (3, 64, 64)
    assert model.class_names[207] == "golden retriever"
    (found,) = model.predict(PICTURE)
    assert len(found.names) == 5
    assert found.probabilities.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_dilation_is_told_from_the_saved_options(tmp_path: Path) -> None:
    """DC5 models have the same tensors as others."""
    state = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in published("detr_r50").items()}
    options = argparse.Namespace(dilation=True, backbone="resnet50")
    torch.save({"model": state, "args": options}, tmp_path / "detr.pth")
    assert describe(str(tmp_path / "detr.pth")).presets == ["detr_r50_dc5"]


def published(preset: str) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return named("detr").export(models.create(preset).state_dict())


@pytest.mark.parametrize("layout", ["official", "ours"])
def test_unrefined_weights_are_refused_by_a_refined_model(layout: str) -> None:
    """Their heads, written once for each layer, would be read as refinements of the layer before."""
    unrefined = small_model(CASES["multi_scale"])
    perturb(unrefined)
    refined = small_model(CASES["refine"])
    state = unrefined.state_dict()
    if layout == "official":
        state = official(dict(transformers_model(CASES["multi_scale"]).state_dict()), dense=False)
    with pytest.raises(
        UserError, match=r"the box heads of all decoder layers are equal: weights of a model without refinement"
    ):
        interop.load(refined, state)
    assert not interop.load(refined, state, strict=False).missing
    interop.load(refined, small_model(CASES["refine"]).state_dict())  # initial heads, before training


def test_errors(tmp_path: Path) -> None:
    torch.save(models.create("swin_pico", num_classes=3).state_dict(), tmp_path / "pico.pt")
    for arguments, message in [
        ({"path": "deformable_detr_r50"}, r"is a preset, without weights: give a file of weights"),
        ({"path": "nowhere.pth"}, r"nowhere\.pth: no such file"),
        ({"path": tmp_path}, r"no weights in this folder"),
        ({"path": tmp_path / "pico.pt", "preset": "swin_pic"}, r"unknown preset 'swin_pic'; did you mean 'swin_pico'"),
        ({"path": tmp_path / "pico.pt", "preset": "swin_tiny"}, r"pico\.pt"),
        ({"path": tmp_path / "pico.pt", "device": "gpu"}, r"device = 'gpu': expected auto, cpu"),
        ({"path": tmp_path / "pico.pt", "device": "meta"}, r"device = 'meta': expected auto, cpu"),
        ({"path": tmp_path / "pico.pt", "device": "cuda:99"}, r"device = 'cuda:99': there is (no|only \d+) GPU"),
        ({"path": tmp_path / "pico.pt", "class_names": ["a"]}, r"class_names: 1 name, but the model has 3 classes"),
        ({"path": tmp_path / "pico.pt", "overrides": ["model.imagesize=3"]}, r"imagesize.*image_size"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            attnzoo.load_model(**arguments)
        assert "\n" not in str(error.value)
    backbone = {f"backbone.{name}": each for name, each in models.features("swin_pico").state_dict().items()}
    torch.save(backbone, tmp_path / "backbone.pt")
    with pytest.raises(UserError):
        attnzoo.load_model(tmp_path / "backbone.pt")
