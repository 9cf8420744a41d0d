"""Small DAT and DAT++ models against a float64 implementation of the published formulas."""

from typing import Any

import pytest
import torch
from support.dat_model import PublishedModel
from support.dat_state import RandomState, Sizes, published, published_plus

from attnzoo import interop, models
from attnzoo.models.vit.classifier import Classifier

WIDTHS: dict[str, Any] = {"dims": (8, 16, 24, 32), "head_dim": 4, "side": 16, "classes": 5}
VERSIONS = {
    "dat_tiny": (Sizes(**WIDTHS, depths=(2, 2, 4, 2), groups=(0, 0, 3, 4), window=2), published),
    "dat_pp_tiny": (Sizes(**WIDTHS, depths=(2, 2, 4, 2), groups=(1, 2, 3, 4), window=3), published_plus),
}


def converted(preset: str, sizes: Sizes, state: RandomState) -> Classifier:
    """The preset with other sizes and the given weights."""
    local = {"kernel": sizes.window} if preset.startswith("dat_pp") else {"window": sizes.window}
    changes: dict[str, Any] = {"image_size": 4 * sizes.side}
    for stage in range(4):
        changes[f"stage{stage + 1}"] = {
            "dim": sizes.dims[stage],
            "depth": sizes.depths[stage],
            "heads": sizes.heads(stage),
            "second": {"groups": sizes.groups[stage]} if sizes.groups[stage] else {"window": sizes.window, "shift": 1},
        }
        if stage < 3 or "window" in local:
            changes[f"stage{stage + 1}"]["first"] = local
    model = models.create(preset, num_classes=sizes.classes, **changes)
    interop.load(model, state)
    return model.double().eval()


@pytest.mark.parametrize("preset", VERSIONS)
def test_logits(preset: str) -> None:
    sizes, saved = VERSIONS[preset]
    torch.manual_seed(0)
    state = saved(sizes)
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    reference = PublishedModel(sizes, {name: tensor.double() for name, tensor in state.items()})
    expected = torch.stack([reference(each) for each in image])
    torch.testing.assert_close(converted(preset, sizes, state)(image), expected, atol=1e-10, rtol=0)
