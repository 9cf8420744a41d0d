"""Detectors against Hugging Face transformers 4.57.6, with the same perturbed weights."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.losses import CLASSES, loss_config, transformers_loss
from support.oracles import CASES, LAYERS, Case, our_model, padded_batch, their_model
from torch import Tensor

from attnzoo.errors import UserError
from attnzoo.interop import huggingface
from attnzoo.models.detr.detector import Detector
from attnzoo.models.detr.losses import SetCriterion
from attnzoo.models.detr.output import DetectorOutput

pytest.importorskip("transformers")


@dataclass
class Pair:
    case: Case
    theirs: Any
    ours: Detector
    their_output: DetectorOutput
    our_output: DetectorOutput
    their_losses: dict[str, Tensor]  # as their model reports them
    targets: list[dict[str, Tensor]]


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest) -> Pair:
    case = CASES[request.param]
    images, mask, targets = padded_batch()
    theirs = their_model(case)
    ours = our_model(case, theirs.state_dict())
    labels = [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
    result = theirs(images, pixel_mask=(~mask).long(), labels=labels, output_hidden_states=True)
    return Pair(case, theirs, ours, their_output(case, theirs, result), ours(images, mask), result.loss_dict, targets)


def their_output(case: Case, model: Any, result: Any) -> DetectorOutput:
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
    theirs, ours = tensors(pair.their_output), tensors(pair.our_output)
    assert theirs.keys() == ours.keys()
    assert len(ours["logits"]) == LAYERS
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_losses(pair: Pair) -> None:
    classification = "cross_entropy" if pair.case.dense else "focal"
    expected = transformers_loss(classification, pair.their_output, pair.targets)
    found = SetCriterion(loss_config(classification), CLASSES)(pair.our_output, pair.targets).parts
    decoder = {name: value for name, value in found.items() if not name.endswith("_encoder")}
    assert len(decoder) == 3 * LAYERS
    torch.testing.assert_close(decoder, expected, atol=1e-5, rtol=1e-5)
    for theirs, name in [("loss_ce", "class"), ("loss_bbox", "l1"), ("loss_giou", "giou")]:
        torch.testing.assert_close(found[name], pair.their_losses[theirs], atol=1e-5, rtol=1e-5)


def test_gradients(pair: Pair) -> None:
    """In float64, because rounding can move a sampling point across a pixel centre, where gradients jump."""
    models = copy.deepcopy(pair.theirs).double(), copy.deepcopy(pair.ours).double()
    images, mask, _ = padded_batch()
    # With labels, Deformable DETR returns all layers; the loss of DETR supports float32 only.
    labels = [{"class_labels": t["labels"], "boxes": t["boxes"].double()} for t in pair.targets]
    result = models[0](
        images.double(),
        pixel_mask=(~mask).long(),
        labels=None if pair.case.dense else labels,
        output_hidden_states=True,
    )
    outputs = their_output(pair.case, models[0], result), models[1](images.double(), mask)
    g = torch.Generator().manual_seed(5)
    weights = {name: torch.randn(value.shape, generator=g) for name, value in tensors(pair.our_output).items()}
    gradients = []
    for model, output in zip(models, outputs, strict=True):
        torch.stack([(weights[name] * value).sum() for name, value in tensors(output).items()]).sum().backward()
        named = model.named_parameters(remove_duplicate=False)
        gradients.append({name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named})
    theirs, ours = gradients
    theirs = huggingface.convert(theirs, pair.ours.config)
    assert theirs.keys() == ours.keys()
    for name, gradient in theirs.items():
        # Content is zero in DETR's first self-attention, so in exact arithmetic its projection weights get no gradient.
        scale = gradient.abs().max().clamp(min=1e-3)
        error = (ours[name] - gradient).abs().max() / scale
        assert error <= 1e-5, f"{name}: {error:.1e}"


def test_unexpected_and_missing_keys_raise() -> None:
    case = CASES["detr"]
    state = their_model(case).state_dict()
    config = our_model(case, state).config
    with pytest.raises(UserError, match=r"unexpected key 'model\.encoder\.extra'"):
        huggingface.convert({**state, "model.encoder.extra": torch.zeros(1)}, config)
    del state["model.encoder.layers.0.self_attn.k_proj.bias"]
    with pytest.raises(UserError, match=r"missing key encoder\.0\.attention\.mha\.k_proj\.bias"):
        huggingface.convert(state, config)
