"""Detection augmentations: sizes, boxes and colours."""

from fractions import Fraction

import pytest
import torch
from torchvision import tv_tensors

from attnzoo.data.augment_detection import RandomSizeCrop, resized_shape
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
        assert min(height, width) in (60, 80) or max(height, width) in (119, 120)  # the shorter side is rounded first
        sides.add((height, width))
        assert len(target["boxes"]) == len(target["labels"])
        assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
        dropped += 6 not in target["labels"]
        bright = (image[0] > 127).nonzero()
        if len(bright) and 5 in target["labels"]:
            (top, left), (bottom, right) = bright.min(0).values.tolist(), (bright.max(0).values + 1).tolist()
            box = target["boxes"][target["labels"] == 5][0].tolist()
            assert box == pytest.approx([left, top, right, bottom], abs=2.0)
    assert len(sides) > 8  # crops have many shapes
    assert dropped > 5


@pytest.mark.parametrize(("width", "height"), [(500, 375), (612, 612), (640, 426), (640, 480), (427, 640), (333, 500)])
def test_detr_keeps_boxes_at_the_border_and_tiny_ones(width, height):
    """With crops of the full image, every box must be kept, whatever resizing rounds to."""
    transform = DETECTION_AUGMENTATIONS.build("detr", "train", crop_size=[4096, 4096])
    image = tv_tensors.Image(torch.zeros(1, height, width, dtype=torch.uint8))
    corners = [
        [0, 0, width, height],
        [width / 3, height / 3, width, height],
        [5, 5, 5.2, 9],
        [0, height - 0.3, 9, height],
    ]
    boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(height, width))
    for seed in range(60):
        torch.manual_seed(seed)
        resized, target = transform(image, {"boxes": boxes, "labels": torch.arange(4)})
        assert target["labels"].tolist() == [0, 1, 2, 3]
        ratio = torch.tensor([resized.shape[-1] / width, resized.shape[-2] / height]).repeat(2)
        restored = target["boxes"] / ratio
        assert (restored[:, 2:] - restored[:, :2]).tolist() == [
            pytest.approx([c[2] - c[0], c[3] - c[1]], abs=1e-3) for c in corners
        ]


def test_crops_drop_only_empty_boxes():
    """The published rule: after clipping to the crop a box is kept if both sides are longer than 0."""
    height, width = 60, 90
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = tv_tensors.Image(torch.stack([rows, columns]))  # pixels encode the cropped window
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(300, 2, 2, generator=generator) * torch.tensor([width, height])
    corners[:100, 1] = corners[:100, 0] + 0.3  # under a pixel
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    target = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "labels": torch.arange(300),
    }
    tiny = 0
    for seed in range(20):
        torch.manual_seed(seed)
        cropped, kept = RandomSizeCrop(20, 50)(image, target)
        (top, left), (h, w) = cropped[:, 0, 0].tolist(), cropped.shape[-2:]
        expected = {}
        for label, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
            clipped = [max(x0, left), max(y0, top), min(x1, left + w), min(y1, top + h)]
            if clipped[0] < clipped[2] and clipped[1] < clipped[3]:
                expected[label] = [clipped[0] - left, clipped[1] - top, clipped[2] - left, clipped[3] - top]
        assert kept["labels"].tolist() == list(expected)
        torch.testing.assert_close(kept["boxes"].as_subclass(torch.Tensor), torch.tensor(list(expected.values())))
        assert kept["boxes"].canvas_size == (h, w)
        tiny += sum(label < 100 for label in expected)
    assert 0 < tiny < 20 * 100


def test_detr_evaluates_at_one_size():
    transform = DETECTION_AUGMENTATIONS.build("detr", "val", **DETR)
    image, target = transform(*scene())
    assert image.shape[-2:] == (70, 93)
    torch.testing.assert_close(
        target["boxes"][0], torch.tensor([40 * 93 / 120, 30 * 70 / 90, 80 * 93 / 120, 60 * 70 / 90])
    )
    published = DETECTION_AUGMENTATIONS.build("detr", "val")
    assert published(tv_tensors.Image(torch.zeros(3, 480, 640, dtype=torch.uint8)), {})[0].shape[-2:] == (800, 1066)
    assert published(tv_tensors.Image(torch.zeros(3, 200, 400, dtype=torch.uint8)), {})[0].shape[-2:] == (666, 1332)


def published_shape(height, width, scale, max_size):
    """The published rule, in exact arithmetic: shrink the scale to the limit, round it, then the other side."""
    aspect = Fraction(max(height, width), min(height, width))
    if max_size and aspect * scale > max_size:
        scale = round(max_size / aspect)
    return tuple(scale if side == min(height, width) else int(scale * aspect) for side in (height, width))


def test_sizes_are_the_published_ones():
    """Including those limited by the longer side, where torchvision's Resize differs by a pixel or two."""
    assert resized_shape(360, 640, 800, 1333) == (750, 1333)
    generator = torch.Generator().manual_seed(0)
    sides = torch.randint(50, 2000, (4000, 2), generator=generator).tolist()
    sides += [[height, 640] for height in range(200, 641)] + [[640, width] for width in range(200, 641)]
    limited = 0
    for height, width in sides:
        for scale, max_size in ((800, 1333), (480, 1333), (600, None)):
            shape = resized_shape(height, width, scale, max_size)
            assert shape == published_shape(height, width, scale, max_size)
            limited += min(shape) < scale
    assert limited > 1000
    for height, width in [*sides[-10:], (360, 640), (640, 360), (333, 500)]:
        image = tv_tensors.Image(torch.zeros(1, height, width, dtype=torch.uint8))
        resized = DETECTION_AUGMENTATIONS.build("detr", "val")(image, {})[0]
        assert resized.shape[-2:] == published_shape(height, width, 800, 1333)


def test_photometric_changes_colours_only_and_only_in_training():
    image, _ = scene()
    transform = DETECTION_AUGMENTATIONS.build("photometric", "train", gain=0.15, offset=0.08, invert=0.3)
    inverted = 0
    batch = transform.apply(image.expand(50, -1, -1, -1), range(50))
    assert batch.dtype == torch.uint8
    for seed, changed in enumerate(batch):
        assert torch.equal(transform.apply(image[None], [seed])[0], changed)
        inverted += bool(changed[0, 0, 0] > 200)
        dark = changed[:, 0, 0] if changed[0, 0, 0] < 127 else 255 - changed[:, 0, 0]
        assert (dark <= 21).all()
    assert 5 < inverted < 25
    for name, split in (("photometric", "val"), ("none", "train"), ("none", "val")):
        assert torch.equal(DETECTION_AUGMENTATIONS.build(name, split).apply(image[None], [3])[0], image)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("detr", {"crop_size": [50, 30]}, r"data\.augment\.crop_size = \[50, 30\]: expected the smaller"),
        ("detr", {"max_size": 700}, r"data\.augment\.max_size = 700"),
        ("detr", {"scales": []}, r"data\.augment\.scales"),
        ("photometric", {"invert": 1.5}, r"data\.augment\.invert = 1.5"),
    ],
)
def test_invalid_options_are_rejected(name, options, message):
    with pytest.raises(UserError, match=message):
        DETECTION_AUGMENTATIONS.build(name, "train", **options)
