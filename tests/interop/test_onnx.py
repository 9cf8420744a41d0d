"""Whole models as ONNX in onnxruntime, and as programs of torch.export, against PyTorch."""

import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from support.models import CLASSES, tiny
from support.run_folder import create_untrained
from torch import nn

from attnzoo import interop, models
from attnzoo.__main__ import main
from attnzoo.errors import UserError
from attnzoo.interop.onnx import largest_difference, runner
from attnzoo.interop.program import InferenceModel
from attnzoo.models.detr.postprocess import postprocess
from attnzoo.ops import sampling

SINGLE: dict[str, Any] = {"backbone": {"strides": [32]}}
DC5: dict[str, Any] = {"backbone": {"strides": [16], "dilation": True}}
MULTI: dict[str, Any] = {"backbone": {"strides": [8, 16, 32]}, "neck": {"c6": True}}
VIT_BACKBONE = {"name": "dat_pico", "options": {"stage4": {"depth": 0}}, "norm": "frozen", "strides": [16]}
DETECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "detr": ("detr_r50", SINGLE),
    "deformable": ("deformable_detr_r50", MULTI),
    "detr_dc5": ("detr_r50_dc5", DC5),
    "refine": ("deformable_detr_r50_refine", MULTI),
    "two_stage": ("deformable_detr_r50_two_stage", MULTI),
    "single_scale": ("deformable_detr_r50_single_scale", SINGLE),
    "single_scale_dc5": ("deformable_detr_r50_single_scale_dc5", DC5),
    "dat_backbone": ("deformable_detr_r50_single_scale", {"backbone": VIT_BACKBONE}),
    "window_backbone": ("deformable_detr_r50_single_scale", {"backbone": VIT_BACKBONE | {"name": "swin_pico"}}),
}
IN_CI = ("deformable",)
VITS = {"swin_tiny": (16, (1, 2, 4, 8)), "dat_tiny": (24, (3, 3, 3, 6)), "dat_pp_tiny": (16, (1, 2, 4, 8))}
TOLERANCE = 1e-4


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


def detector(name: str, layers: int = 1) -> nn.Module:
    preset, overrides = DETECTORS[name]
    return trained(tiny(preset, **{"encoder": {"layers": layers}, "decoder": {"layers": layers + 1}, **overrides}))


def classifier(preset: str, stages: int = 4) -> nn.Module:
    """A tiny classifier of a preset; with one stage, of its first and second kind of attention."""
    dim, heads = VITS[preset]
    sizes: dict[str, Any] = {
        f"stage{index + 1}": {"dim": dim * 2**index, "depth": 2 if index < stages else 0, "heads": number}
        for index, number in enumerate(heads)
    }
    if stages == 1:
        stage = models.presets.vit_config(preset, {}).stage3
        options = {"first": stage.first, "second": stage.second, "pattern": [1, 2]}
        sizes["stage1"] |= options
    torch.manual_seed(0)
    return trained(models.create(preset, num_classes=CLASSES, image_size=64, **sizes))


def assert_images_matter(run: Any, model: InferenceModel) -> None:
    """The output is not a constant of the graph."""
    first, second = (run(model.example(2, 128, 160, seed=seed))[0] for seed in (1, 2))
    assert (first - second).abs().max() > 1e-3


@pytest.fixture(scope="module")
def one_stage() -> nn.Module:
    """Its decoder layers have the same reference points."""
    return trained(tiny("deformable_detr_r50_single_scale", backbone={"strides": [32]}, encoder={"layers": 0}))


@pytest.fixture(scope="module")
def one_stage_file(one_stage: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With gathers, without GridSample, in opset 18."""
    file = tmp_path_factory.mktemp("onnx") / "detector.onnx"
    metadata = {"class_names": ["a", "b"]}
    return interop.export_model(one_stage, file, opset=18, sampling="gather", metadata=metadata)


@pytest.mark.slow
def test_a_detector_without_grid_sample_in_opset_18(one_stage: nn.Module, one_stage_file: Path) -> None:
    written = onnx.load(one_stage_file)
    assert [entry.version for entry in written.opset_import if not entry.domain] == [18]
    assert "GridSample" not in {node.op_type for node in written.graph.node}
    assert largest_difference(one_stage_file, one_stage) <= TOLERANCE
    wrapped = InferenceModel(one_stage)
    assert_images_matter(runner(one_stage_file, wrapped), wrapped)


@pytest.mark.slow
def test_inputs_and_outputs_have_names(one_stage_file: Path) -> None:
    session = onnxruntime.InferenceSession(one_stage_file, providers=["CPUExecutionProvider"])
    assert {entry.name: entry.shape for entry in session.get_inputs()} == {
        "images": ["batch", 3, "height", "width"],
        "mask": ["batch", "height", "width"],
    }
    assert {entry.name: entry.shape for entry in session.get_outputs()} == {
        "logits": ["batch", 6, CLASSES],
        "boxes": ["batch", 6, 4],
    }
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == ["a", "b"]


@pytest.mark.slow
def test_an_unpadded_batch_equals_one_without_mask(one_stage: nn.Module, one_stage_file: Path) -> None:
    wrapped = InferenceModel(one_stage)
    inputs = wrapped.example(1, 128, 96)
    assert not inputs["mask"].any()
    logits, boxes = runner(one_stage_file, wrapped)(inputs)
    with torch.no_grad():
        output = one_stage(inputs["images"])
    torch.testing.assert_close(logits, output.logits[-1], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(boxes, output.boxes[-1], rtol=0, atol=TOLERANCE)


def test_postprocess_gives_detections_in_pixels(one_stage: nn.Module) -> None:
    wrapped = InferenceModel(one_stage, mask=False, postprocess=True, max_detections=10)
    assert wrapped.inputs == ["images", "sizes"]
    inputs = wrapped.example(2, 64, 96)
    with torch.no_grad():
        outputs = dict(zip(wrapped.outputs, wrapped(**inputs), strict=True))
        expected = postprocess(one_stage(inputs["images"]), inputs["sizes"], "focal", 10)
    assert outputs["boxes"].abs().max() > 2
    for image, detections in enumerate(expected):
        for name, values in detections.items():
            assert torch.equal(outputs[name][image], values)


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("model.pth", {}, "model.pth: expected a name that ends in .onnx or .pt2"),
        ("model.onnx", {"opset": 17}, "opset = 17: expected 18 or 20"),
        ("model.onnx", {"sampling": "gathr"}, "unknown sampling 'gathr'; did you mean 'gather'?"),
    ],
)
def test_what_cannot_be_exported(
    one_stage: nn.Module, file: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        interop.export_model(one_stage, tmp_path / file, **options)
    assert message in str(error.value)
    with pytest.raises(UserError, match="cannot export a Linear: expected a detector or a classifier"):
        interop.export_model(nn.Linear(1, 1), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_CI else pytest.mark.long) for name in DETECTORS]
)
def test_detectors(name: str, tmp_path: Path) -> None:
    model = detector(name)
    file = interop.export_model(model, tmp_path / "detector.onnx")
    assert largest_difference(file, model) <= TOLERANCE
    wrapped = InferenceModel(model)
    assert_images_matter(runner(file, wrapped), wrapped)


@pytest.mark.slow
def test_a_classifier(tmp_path: Path) -> None:
    model = classifier("dat_tiny", stages=1)
    file = interop.export_model(model, tmp_path / "classifier.onnx", postprocess=True)
    shapes = ((1, 64, 96), (3, 71, 85))  # small, as all queries and keys have a bias in memory
    assert largest_difference(file, model, shapes=shapes, postprocess=True) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("sampling", ["grid_sample", "gather"])
@pytest.mark.parametrize("preset", VITS)
def test_classifiers(preset: str, sampling: str, tmp_path: Path) -> None:
    model = classifier(preset)
    file = interop.export_model(model, tmp_path / "classifier.onnx", sampling=sampling, mask=True)
    assert largest_difference(file, model, mask=True) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("sampling", ["grid_sample", "gather"])
@pytest.mark.parametrize("name", ["deformable", "two_stage", "dat_backbone"])
def test_postprocessed_detectors_in_opset_18(name: str, sampling: str, tmp_path: Path) -> None:
    model = detector(name)
    options: dict[str, Any] = {"postprocess": True, "max_detections": 20}
    file = interop.export_model(model, tmp_path / "detector.onnx", opset=18, sampling=sampling, **options)
    assert largest_difference(file, model, **options) <= TOLERANCE


@pytest.mark.slow
def test_gathers_from_maps_of_one_size(tmp_path: Path) -> None:
    """With sizes that are constants, onnxscript's optimizer names the bounds of Clip after its input."""

    class Gather(nn.Module):
        def forward(self, maps: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
            return sampling.gather(maps, grid)

    inputs = torch.randn(2, 3, 5, 7), 2 * torch.rand(2, 4, 3, 2) - 1
    program = torch.onnx.export(Gather(), inputs, dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "gather.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "gather.onnx")
    (output,) = session.run(None, {"maps": inputs[0].numpy(), "grid": inputs[1].numpy()})
    torch.testing.assert_close(torch.from_numpy(output), sampling.gather(*inputs), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_tiny", "dat_tiny", "window_backbone"])
def test_a_program_of_windows_for_any_size(name: str, tmp_path: Path) -> None:
    """Maps of several windows and of one, filled up or not: none of it is taken from the traced example."""
    model = detector(name) if name in DETECTORS else classifier(name, stages=1 if name == "dat_tiny" else 2)
    program = torch.export.load(interop.export_model(model, tmp_path / "model.pt2", mask=False)).module()
    eager = InferenceModel(model, mask=False)
    for size in ((1, 224, 224), (2, 224, 256), (1, 200, 333), (1, 64, 96)):
        inputs = eager.example(*size)
        torch.testing.assert_close(program(**inputs), eager(**inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_program_of_neighborhoods_takes_one_image(tmp_path: Path) -> None:
    """Their maps are strided, and for these PyTorch's convolutions ask for the batch."""
    model = classifier("dat_pp_tiny", stages=2)
    program = torch.export.load(interop.export_model(model, tmp_path / "model.pt2", mask=False)).module()
    eager = InferenceModel(model, mask=False)
    for size in ((1, 224, 224), (3, 200, 333)):
        inputs = eager.example(*size)
        torch.testing.assert_close(program(**inputs), eager(**inputs), rtol=1e-4, atol=1e-4)


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a tiny detector with a checkpoint of random weights, and without data."""
    monkeypatch.chdir(tmp_path)
    return create_untrained()


@pytest.mark.slow
def test_a_program_of_a_run_from_the_command_line(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run_folder), "-o", "model.pt2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("model.pt2: inputs images (batch, 3, height, width), mask (batch, height, width); outputs lo")
    assert "largest difference from PyTorch: " in out
    files = {"metadata.json": ""}
    program = torch.export.load("model.pt2", extra_files=files)
    assert json.loads(files["metadata.json"])["class_names"] == [str(digit) for digit in range(10)]
    for batch, height, width in ((1, 64, 64), (3, 96, 64)):
        mask = torch.zeros(batch, height, width, dtype=torch.bool)
        logits, boxes = program.module()(images=torch.rand(batch, 3, height, width), mask=mask)
        assert logits.shape == (batch, 5, 10)
        assert boxes.shape == (batch, 5, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "model.txt"], "error: -o model.txt: expected a name that ends in .onnx or .pt2"),
        (["-o", "."], "error: -o .: is a folder; name a file, such as NAME.onnx"),
        (["-o", "model.onnx", "--opset", "19"], "error: --opset 19: expected 18 or 20"),
        (["-o", "model.pt2", "--opset", "18"], "error: --opset 18: a .pt2 file has no operators of ONNX"),
    ],
)
def test_options_are_checked_before_the_weights_are_read(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "nowhere", *options]) == 2
    assert capsys.readouterr().err == f"{message}\n"
