"""Trying a model on the meta device tells what trains, without training it."""

from typing import Any

import pytest
import torch
from support.models import CLASSES, detection_targets, padded_images, tiny, without_gradient

from attnzoo.errors import UserError
from attnzoo.models.detr.losses import SetCriterion
from attnzoo.models.dry_run import dry_run, unused_parameters

UNREAD = {
    "a level embedding that no attention reads": {"encoder": {"layers": 0}},
    "stages beyond the last stride": {"backbone": {"name": "mobilenetv3_small_050", "options": {}, "strides": [8]}},
    "nothing": {},
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_gets_no_gradient_is_foretold(name: str) -> None:
    model = tiny(**UNREAD[name])
    foretold = unused_parameters(model.config, CLASSES, (64, 48))
    assert bool(foretold) == (name != "nothing")
    SetCriterion(model.config.loss, CLASSES)(model(*padded_images(64, 48)), detection_targets()).total.backward()
    assert without_gradient(model) == foretold


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"backbone": {"options": {"layers": [1, 1, 1, 1], "in_chans": 4}}}, "does not run on images of 64 x 48"),
        ({"head": {"two_stage": True, "refine": True}, "queries": 900}, "has only 12 tokens"),
    ],
)
def test_a_model_that_does_not_run_is_refused(overrides: dict[str, Any], message: str) -> None:
    with torch.device("meta"):
        config = tiny(**overrides).config
    for trial in (unused_parameters, dry_run):
        with pytest.raises(UserError, match=message):
            trial(config, CLASSES, (64, 48))
