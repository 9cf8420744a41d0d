"""Detection transforms, applied before normalisation."""

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from attnzoo.data.checks import check_option
from attnzoo.data.pixels import PixelTransform, build_photometric
from attnzoo.data.registries import DETECTION_AUGMENTATIONS, Target, Transform


@DETECTION_AUGMENTATIONS.register("none")
def none(split: str) -> PixelTransform:
    """No augmentation."""
    return PixelTransform()


@DETECTION_AUGMENTATIONS.register("photometric")
def photometric(split: str, *, gain: float = 0.15, offset: float = 0.08, invert: float = 0.3) -> PixelTransform:
    """Photometric augmentation, training only.

    The image is multiplied by a factor in 1 ± `gain`; each channel is shifted by up to ± `offset` of the range; the
    image is inverted with probability `invert`.
    """
    return build_photometric(split, gain, offset, invert)


@DETECTION_AUGMENTATIONS.register("detr")
def detr(
    split: str,
    *,
    scales: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
    max_size: int = 1333,
    crop_scales: tuple[int, ...] = (400, 500, 600),
    crop_size: tuple[int, int] = (384, 600),
    eval_scale: int = 800,
    flip: float = 0.5,
) -> Transform:
    """The published augmentation of DETR and Deformable DETR; sizes in pixels.

    Training: horizontal flip with probability `flip`; then with probability 0.5 a random resize (shorter side in
    `scales`, longer at most `max_size`), else a resize of the shorter side to one of `crop_scales`, a crop with sides
    in the range `crop_size`, and the random resize. Evaluation: shorter side `eval_scale`, longer at most `max_size`.
    Boxes are clipped to the crop and dropped if nothing is left of them.
    """
    sizes = {"scales": scales, "crop_scales": crop_scales, "crop_size": crop_size, "eval_scale": (eval_scale,)}
    for name, values in sizes.items():
        check_option(f"data.augment.{name}", list(values), min(values, default=0) >= 1, "positive sizes in pixels")
    check_option("data.augment.crop_size", list(crop_size), crop_size[0] <= crop_size[1], "the smaller size first")
    largest = max(*scales, eval_scale)
    check_option("data.augment.max_size", max_size, max_size > largest, f"more than scales and eval_scale ({largest})")
    check_option("data.augment.flip", flip, 0 <= flip <= 1, "a probability")
    if split != "train":
        return ResizeShorterSide(eval_scale, max_size)
    resize = v2.RandomChoice([ResizeShorterSide(scale, max_size) for scale in scales])
    shrink = v2.RandomChoice([ResizeShorterSide(scale) for scale in crop_scales])
    crop = v2.Compose([shrink, RandomSizeCrop(*crop_size), resize])
    return v2.Compose([v2.RandomHorizontalFlip(flip), v2.RandomChoice([resize, crop])])


class ResizeShorterSide(v2.Transform):
    """Bilinear resize of images and boxes to `resized_shape`."""

    def __init__(self, scale: int, max_size: int | None = None):
        super().__init__()
        self.scale, self.max_size = scale, max_size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        return {"size": list(resized_shape(height, width, self.scale, self.max_size))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.resize, inpt, **params)


def resized_shape(height: int, width: int, scale: int, max_size: int | None = None) -> tuple[int, int]:
    """(h, w) as in DETR: the shorter side becomes `scale`, or less where the longer would exceed `max_size`.

    The shorter side is rounded first, so the longer can exceed `max_size` by up to half the aspect ratio. Both are at
    least 1.
    """
    shorter, longer = sorted((height, width))
    if max_size is not None and scale * longer > max_size * shorter:
        scale = max(round(max_size * shorter / longer), 1)
    other = scale * longer // shorter
    return (scale, other) if height <= width else (other, scale)


class RandomSizeCrop:
    """Random crop; height and width are sampled independently from `min_size` … `max_size` pixels, within the image.

    Boxes are clipped to the crop and only empty ones dropped, as in DETR. (`v2.SanitizeBoundingBoxes` would also drop
    boxes that rounding in a resize moved over the border.)
    """

    def __init__(self, min_size: int, max_size: int):
        self.min_size, self.max_size = min_size, max_size

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        height, width = image.shape[-2:]
        h, w = (_randint(min(self.min_size, side), min(self.max_size, side)) for side in (height, width))
        window = _randint(0, height - h), _randint(0, width - w), h, w
        boxes = F.crop(target["boxes"], *window)
        keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
        target = {"boxes": tv_tensors.wrap(boxes[keep], like=boxes), "labels": target["labels"][keep]}
        return F.crop(image, *window), target


def _randint(low: int, high: int) -> int:
    """A random integer from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, ()))
