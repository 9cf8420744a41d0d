"""Augmentations keep boxes where the objects are."""

import pytest
import torch
from torchvision import tv_tensors

from attnzoo.data.registries import DETECTION_AUGMENTATIONS
from attnzoo.errors import UserError

DETR = {"scales": [60, 80], "max_size": 120, "crop_scales": [64], "crop_size": [30, 50], "eval_scale": 70}


def scene():
    """A bright rectangle on black, with its box, and a second box without area left after most crops."""
    image = torch.zeros(3, 90, 120, dtype=torch.uint8)
    image[:, 30:60, 40:80] = 255
    boxes = tv_tensors.BoundingBoxes([[40.0, 30, 80, 60], [0, 0, 3, 3]], format="XYXY", canvas_size=(90, 120))
    return tv_tensors.Image(image), {"boxes": boxes, "labels": torch.tensor([5, 6])}


def test_detr_boxes_follow_the_object():
    transform = DETECTION_AUGMENTATIONS.build("detr", "train", **DETR)
    sides, dropped = set(), 0
    for seed in range(60):
        torch.manual_seed(seed)
        image, target = transform(*scene())
        height, width = image.shape[-2:]
        assert target["boxes"].canvas_size == (height, width)
        assert max(height, width) <= 120
        assert min(height, width) in (60, 80) or max(height, width) == 120
        sides.add((height, width))
        assert len(target["boxes"]) == len(target["labels"])
        assert (target["boxes"][:, 2:] - target["boxes"][:, :2] >= 1).all()
        dropped += 6 not in target["labels"]
        bright = (image[0] > 127).nonzero()
        if len(bright) and 5 in target["labels"]:
            (top, left), (bottom, right) = bright.min(0).values.tolist(), (bright.max(0).values + 1).tolist()
            box = target["boxes"][target["labels"] == 5][0].tolist()
            assert box == pytest.approx([left, top, right, bottom], abs=2.0)
    assert len(sides) > 8  # crops have many shapes
    assert dropped > 5


def test_detr_evaluates_at_one_size():
    transform = DETECTION_AUGMENTATIONS.build("detr", "val", **DETR)
    image, target = transform(*scene())
    assert image.shape[-2:] == (70, 93)
    torch.testing.assert_close(
        target["boxes"][0], torch.tensor([40 * 93 / 120, 30 * 70 / 90, 80 * 93 / 120, 60 * 70 / 90])
    )
    published = DETECTION_AUGMENTATIONS.build("detr", "val")
    assert published(tv_tensors.Image(torch.zeros(3, 480, 640, dtype=torch.uint8)), {})[0].shape[-2:] == (800, 1066)
    assert published(tv_tensors.Image(torch.zeros(3, 200, 400, dtype=torch.uint8)), {})[0].shape[-2:] == (666, 1333)


def test_photometric_changes_colours_only_and_only_in_training():
    image, target = scene()
    transform = DETECTION_AUGMENTATIONS.build("photometric", "train", gain=0.15, offset=0.08, invert=0.3)
    inverted = 0
    for seed in range(50):
        torch.manual_seed(seed)
        changed, kept = transform(image, target)
        assert changed.dtype == torch.uint8
        assert torch.equal(kept["boxes"], target["boxes"])
        inverted += bool(changed[0, 0, 0] > 200)
        dark = changed[:, 0, 0] if changed[0, 0, 0] < 127 else 255 - changed[:, 0, 0]
        assert (dark <= 21).all()
    assert 5 < inverted < 25
    for name, split in (("photometric", "val"), ("none", "train"), ("none", "val")):
        assert torch.equal(DETECTION_AUGMENTATIONS.build(name, split)(image, target)[0], image)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("detr", {"crop_size": [50, 30]}, r"data\.augment\.crop_size = \[50, 30\]: expected the smaller"),
        ("detr", {"max_size": 700}, r"data\.augment\.max_size = 700"),
        ("detr", {"scales": []}, r"data\.augment\.scales"),
        ("photometric", {"invert": 1.5}, r"data\.augment\.invert = 1.5"),
    ],
)
def test_impossible_options_are_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        DETECTION_AUGMENTATIONS.build(name, "train", **options)
