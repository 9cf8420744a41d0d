"""Detectors against Hugging Face transformers 4.57.6, with the same perturbed weights."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.losses import CLASSES, loss_config, transformers_loss
from support.oracles import (
    CASES,
    LAYERS,
    Case,
    converted_model,
    converted_state,
    padded_batch,
    transformers_model,
)
from torch import Tensor

from attnzoo import interop
from attnzoo.errors import UserError
from attnzoo.models.detr.detector import Detector
from attnzoo.models.detr.losses import SetCriterion
from attnzoo.models.detr.output import DetectorOutput

pytest.importorskip("transformers")


@dataclass
class Pair:
    case: Case
    reference: Any
    detector: Detector
    expected_output: DetectorOutput
    output: DetectorOutput
    expected_losses: dict[str, Tensor]  # as reported by transformers
    targets: list[dict[str, Tensor]]


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest) -> Pair:
    case = CASES[request.param]
    images, mask, targets = padded_batch()
    reference = transformers_model(case)
    detector = converted_model(case, reference.state_dict())
    labels = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
    result = reference(images, pixel_mask=(~mask).long(), labels=labels, output_hidden_states=True)
    expected = transformers_output(case, reference, result)
    return Pair(case, reference, detector, expected, detector(images, mask), result.loss_dict, targets)


def transformers_output(case: Case, model: Any, result: Any) -> DetectorOutput:
    """Predictions of all layers as a DetectorOutput."""
    if case.dense:
        # With auxiliary_loss, transformers would feed normalised states to the next layer.
        states = [model.model.decoder.layernorm(s) for s in result.decoder_hidden_states[1:-1]]
        states.append(result.decoder_hidden_states[-1])
        return DetectorOutput(
            torch.stack([model.class_labels_classifier(s) for s in states]),
            torch.stack([model.bbox_predictor(s).sigmoid() for s in states]),
        )
    layers = [*result.auxiliary_outputs, {"logits": result.logits, "pred_boxes": result.pred_boxes}]
    encoder = result.enc_outputs_coord_logits
    return DetectorOutput(
        torch.stack([layer["logits"] for layer in layers]),
        torch.stack([layer["pred_boxes"] for layer in layers]),
        result.enc_outputs_class,
        None if encoder is None else encoder.sigmoid(),
    )


def tensors(output: DetectorOutput) -> dict[str, Tensor]:
    return {name: value for name, value in vars(output).items() if value is not None}


def test_outputs_of_all_layers(pair: Pair) -> None:
    expected, actual = tensors(pair.expected_output), tensors(pair.output)
    assert expected.keys() == actual.keys()
    assert len(actual["logits"]) == LAYERS
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_losses(pair: Pair) -> None:
    classification = "cross_entropy" if pair.case.dense else "focal"
    expected = transformers_loss(classification, pair.expected_output, pair.targets)
    losses = SetCriterion(loss_config(classification), CLASSES)(pair.output, pair.targets).parts
    decoder = {name: value for name, value in losses.items() if not name.endswith("_encoder")}
    assert len(decoder) == 3 * LAYERS
    torch.testing.assert_close(decoder, expected, atol=1e-5, rtol=1e-5)
    for key, name in [("loss_ce", "class"), ("loss_bbox", "l1"), ("loss_giou", "giou")]:
        torch.testing.assert_close(losses[name], pair.expected_losses[key], atol=1e-5, rtol=1e-5)


def test_gradients(pair: Pair) -> None:
    """In float64, because rounding can move a sampling point across a pixel centre, where gradients jump."""
    models = copy.deepcopy(pair.reference).double(), copy.deepcopy(pair.detector).double()
    images, mask, _ = padded_batch()
    # With labels, Deformable DETR returns all layers; the loss of DETR supports float32 only.
    labels = [{"class_labels": t["labels"], "boxes": t["boxes"].double()} for t in pair.targets]
    result = models[0](
        images.double(),
        pixel_mask=(~mask).long(),
        labels=None if pair.case.dense else labels,
        output_hidden_states=True,
    )
    outputs = transformers_output(pair.case, models[0], result), models[1](images.double(), mask)
    g = torch.Generator().manual_seed(5)
    weights = {name: torch.randn(value.shape, generator=g) for name, value in tensors(pair.output).items()}
    gradients = []
    for model, output in zip(models, outputs, strict=True):
        torch.stack([(weights[name] * value).sum() for name, value in tensors(output).items()]).sum().backward()
        named = model.named_parameters(remove_duplicate=False)
        gradients.append({name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named})
    expected, actual = gradients
    expected = converted_state(expected, pair.detector)
    assert expected.keys() == actual.keys()
    for name, gradient in expected.items():
        # Content is zero in DETR's first self-attention, so in exact arithmetic its projection weights get no gradient.
        scale = gradient.abs().max().clamp(min=1e-3)
        error = (actual[name] - gradient).abs().max() / scale
        assert error <= 1e-5, f"{name}: {error:.1e}"


def test_unexpected_and_missing_keys_raise() -> None:
    case = CASES["detr"]
    state = transformers_model(case).state_dict()
    model = converted_model(case, state)
    with pytest.raises(UserError, match=r"1 unexpected key, such as 'model\.encoder\.extra'"):
        interop.load(model, {**state, "model.encoder.extra": torch.zeros(1)})
    del state["model.encoder.layers.0.self_attn.k_proj.bias"]
    with pytest.raises(
        UserError, match=r"only 2 of the 3 tensors that make up encoder\.0\.attention\.mha\.in_proj_bias"
    ):
        interop.load(model, state)
