"""A dry run on the meta device finds unused parameters and models that cannot run."""

from typing import Any

import pytest
import torch
from support.models import CLASSES, detection_targets, padded_images, tiny, without_gradient

from attnzoo.errors import UserError
from attnzoo.models.detr.losses import SetCriterion
from attnzoo.models.dry_run import dry_run, unused_parameters

UNUSED = {
    "level embedding without encoder": {"encoder": {"layers": 0}},
    "stages beyond the last stride": {"backbone": {"name": "mobilenetv3_small_050", "options": {}, "strides": [8]}},
    "nothing": {},
}


@pytest.mark.parametrize("name", UNUSED)
def test_unused_parameters_have_no_gradient(name: str) -> None:
    model = tiny(**UNUSED[name])
    unused = unused_parameters(model, (64, 48))
    assert bool(unused) == (name != "nothing")
    SetCriterion(model.config.loss, CLASSES)(model(*padded_images(64, 48)), detection_targets()).total.backward()
    assert without_gradient(model) == unused


def test_norm_of_a_single_pixel_needs_two_images() -> None:
    model = tiny(backbone={"strides": [32]})
    assert unused_parameters(model, (32, 32), batch_size=2) == []
    with pytest.raises(UserError, match="one value per channel") as refused:
        unused_parameters(model, (32, 32), batch_size=1)
    assert refused.value.keys == ("data.batch_size", "model.backbone.norm")


def test_unused_parameters_does_not_change_the_model() -> None:
    model = tiny().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    unused_parameters(model, (64, 48))
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"backbone": {"options": {"layers": [1, 1, 1, 1], "in_chans": 4}}}, "does not run on images of 64 x 48"),
        ({"head": {"two_stage": True, "refine": True}, "queries": 900}, "exceeds the 12 encoder tokens"),
    ],
)
def test_model_that_does_not_run_raises(overrides: dict[str, Any], message: str) -> None:
    with torch.device("meta"):
        model = tiny(**overrides)
    with pytest.raises(UserError, match=message):
        unused_parameters(model, (64, 48))
    with pytest.raises(UserError, match=message):
        dry_run(model.config, CLASSES, (64, 48))
