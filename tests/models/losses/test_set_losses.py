"""Set losses against transformers, and against plain code where transformers has no counterpart."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from support.losses import CLASSES, loss_config, random_output, random_targets, transformers_loss
from torch.nn import functional as F

from attnzoo.errors import UserError
from attnzoo.models.detr.boxes import pairwise_giou
from attnzoo.models.detr.losses import SetCriterion
from attnzoo.models.detr.output import DetectorOutput

KINDS = ["cross_entropy", "focal"]
COUNTS = {"ordinary": (4, 1, 6), "an image without objects": (3, 0, 5), "more objects than queries": (2, 11, 0)}


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_components_equal_transformers(kind, counts):
    output, targets = random_output(kind), random_targets(*counts)
    actual = SetCriterion(loss_config(kind), CLASSES)(output, targets).parts
    expected = transformers_loss(kind, output, targets)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value.detach(), rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_total_and_gradients_equal_transformers(kind):
    """The total with published weights, and its gradients, in float64."""
    config = loss_config(kind)
    output, targets = random_output(kind, dtype=torch.float64), random_targets(4, 0, 6, dtype=torch.float64)
    leaves = (output.logits, output.boxes)
    total = SetCriterion(config, CLASSES)(output, targets).total
    weights = {"class": config.class_weight, "l1": 5.0, "giou": 2.0}
    expected = sum(weights[n.split("_")[0]] * v for n, v in transformers_loss(kind, output, targets).items())
    torch.testing.assert_close(total, expected, rtol=1e-7, atol=0)
    gradients, expected_gradients = (torch.autograd.grad(loss, leaves) for loss in (total, expected))
    assert all(gradient.abs().max() > 0.01 for gradient in expected_gradients)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_without_objects(kind):
    output, targets = random_output(kind), random_targets(0, 0, 0)
    result = SetCriterion(loss_config(kind), CLASSES)(output, targets)
    expected = transformers_loss(kind, output, targets)
    torch.testing.assert_close(result.parts["class"], expected["class"].detach())
    assert result.parts["l1"] == result.parts["giou"] == 0
    result.total.backward()
    assert output.logits.grad.abs().sum() > 0
    assert output.boxes.grad.abs().sum() == 0  # zero, not None: DDP needs gradients from processes without objects too


@pytest.mark.parametrize("select", ["class_agnostic", "max_class"])
@pytest.mark.parametrize("kind", KINDS)
def test_encoder_loss_by_hand(kind, select):
    """Loss of two-stage proposals: over all tokens; labels are 0 unless selection uses the maximum class."""
    config = loss_config(kind)
    output, targets = random_output(kind, images=2, tokens=40), random_targets(4, 3)
    parts = SetCriterion(config, CLASSES, select=select)(output, targets).parts

    boxes_total, weights, expected = 7, 0.0, dict.fromkeys(("class", "l1", "giou"), 0.0)
    for logits, boxes, target in zip(output.encoder_logits, output.encoder_boxes, targets, strict=True):
        labels = torch.zeros_like(target["labels"]) if select == "class_agnostic" else target["labels"]
        if kind == "focal":
            p = logits.sigmoid()[:, labels]
            cost = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log()
        else:
            cost = -logits.softmax(-1)[:, labels]
        l1 = (boxes[:, None] - target["boxes"]).abs().sum(-1)
        giou = 1 - pairwise_giou(boxes, target["boxes"])
        total_cost = config.match_class * cost + 5 * l1 + 2 * giou
        tokens, objects = map(torch.as_tensor, linear_sum_assignment(total_cost.detach().numpy()))
        expected["l1"] += l1[tokens, objects].sum() / boxes_total
        expected["giou"] += giou[tokens, objects].sum() / boxes_total
        if kind == "focal":
            target_classes = torch.zeros_like(logits)
            target_classes[tokens, labels[objects]] = 1
            p_t = torch.where(target_classes == 1, logits.sigmoid(), 1 - logits.sigmoid())
            alpha = torch.where(target_classes == 1, 0.25, 0.75)
            expected["class"] += (alpha * (1 - p_t) ** 2 * -p_t.log()).sum() / boxes_total
        else:
            target_classes = torch.full((len(logits),), CLASSES)
            target_classes[tokens] = labels[objects]
            weight = torch.where(target_classes == CLASSES, 0.1, 1.0)
            expected["class"] += (weight * F.cross_entropy(logits, target_classes, reduction="none")).sum()
            weights += weight.sum()
    if kind == "cross_entropy":
        expected["class"] /= weights
    for name, value in expected.items():
        torch.testing.assert_close(parts[f"{name}_encoder"], value.detach(), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_total_is_the_weighted_sum_of_the_parts(kind):
    config = loss_config(kind)
    config.class_weight, config.l1_weight, config.giou_weight = 3.0, 7.0, 11.0
    output, targets = random_output(kind, tokens=20), random_targets(2, 3, 0)
    result = SetCriterion(config, CLASSES)(output, targets)
    assert len(result.parts) == 3 * (3 + 1)
    weights = {"class": 3.0, "l1": 7.0, "giou": 11.0}
    expected = sum(weights[name.split("_")[0]] * value for name, value in result.parts.items())
    torch.testing.assert_close(result.total.detach(), expected)


def test_without_auxiliary_losses_only_the_last_layer_gets_gradients():
    config = loss_config("focal")
    config.auxiliary = False
    output, targets = random_output("focal"), random_targets(2, 3, 0)
    result = SetCriterion(config, CLASSES)(output, targets)
    assert result.parts.keys() == {"class", "l1", "giou"}
    assert result.parts["l1"] == SetCriterion(loss_config("focal"), CLASSES)(output, targets).parts["l1"]
    result.total.backward()
    assert (output.logits.grad[:-1] == 0).all()
    assert output.logits.grad[-1].abs().min() > 0


def test_number_of_boxes_is_an_argument():
    output, targets = random_output("focal"), random_targets(2, 3, 0)
    loss = SetCriterion(loss_config("focal"), CLASSES)
    torch.testing.assert_close(loss(output, targets, 10).total * 2, loss(output, targets).total)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", ["logits", "boxes"])
def test_nonfinite_prediction_makes_the_loss_nonfinite(kind, field):
    """The engine stops at such a loss, so matching must not hide it."""
    for value in (math.nan, math.inf):
        output, targets = random_output(kind), random_targets(2, 1, 0)
        with torch.no_grad():
            getattr(output, field)[1, 0, 5, 2] = value
        result = SetCriterion(loss_config(kind), CLASSES)(output, targets)
        assert not result.total.isfinite()
        assert any(name.endswith("_1") and not part.isfinite() for name, part in result.parts.items())
        assert result.parts["class"].isfinite()


def test_predicted_boxes_without_area_have_finite_gradients():
    """The sigmoid of a very negative logit is 0, so a predicted box can have zero width or height."""
    output, targets = random_output("focal"), random_targets(2, 1, 3)
    with torch.no_grad():
        output.boxes[..., 2:] = 0
    SetCriterion(loss_config("focal"), CLASSES)(output, targets).total.backward()
    assert output.boxes.grad.isfinite().all()


def test_half_precision_predictions_are_upcast():
    output, targets = random_output("focal"), random_targets(2, 1, 3)
    low = DetectorOutput(output.logits.bfloat16(), output.boxes.bfloat16())
    same = DetectorOutput(low.logits.float(), low.boxes.float())
    loss = SetCriterion(loss_config("focal"), CLASSES)
    assert loss(low, targets).total.dtype == torch.float32
    assert loss(low, targets).total == loss(same, targets).total


def test_unknown_classification_suggests_the_nearest():
    config = loss_config("focal")
    config.classification = "focl"
    with pytest.raises(UserError, match=r"model\.loss\.classification: .*'focl'; did you mean 'focal'"):
        SetCriterion(config, CLASSES)
