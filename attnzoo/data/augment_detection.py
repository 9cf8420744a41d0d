"""What is done to images before they are normalised, in training and in evaluation."""

from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from attnzoo.data.registries import DETECTION_AUGMENTATIONS, Transform
from attnzoo.errors import UserError


@DETECTION_AUGMENTATIONS.register("none")
def none(split: str) -> Transform:
    """Images as they are."""
    return v2.Identity()


@DETECTION_AUGMENTATIONS.register("photometric")
def photometric(split: str, *, gain: float = 0.15, offset: float = 0.08, invert: float = 0.3) -> Transform:
    """Colours only, in training only.

    A factor within 1 ± `gain` for the image and an offset within ± `offset` of the range for each channel; inversion
    with probability `invert`.
    """
    for name, value in (("gain", gain), ("offset", offset), ("invert", invert)):
        if not 0 <= value <= 1:
            raise UserError(f"data.augment.{name} = {value}: expected a number from 0 to 1")
    return v2.Compose([RandomColorShift(gain, offset), v2.RandomInvert(invert)]) if split == "train" else v2.Identity()


@DETECTION_AUGMENTATIONS.register("detr")
def detr(
    split: str,
    *,
    short: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
    long: int = 1333,
    crop_short: tuple[int, ...] = (400, 500, 600),
    crop: tuple[int, int] = (384, 600),
    eval_short: int = 800,
    flip: float = 0.5,
) -> Transform:
    """The published augmentation of DETR and Deformable DETR; sizes in pixels.

    Training: flip with probability `flip`; then, evenly, either a resize of the shorter side to one of `short` with the
    longer at most `long`, or a resize to one of `crop_short`, a crop with each side drawn from `crop`, and that resize.
    Evaluation: shorter side `eval_short`, longer at most `long`. Boxes are clipped to the crop; those left with a side
    under one pixel are dropped.
    """
    for name, sizes in (("short", short), ("crop_short", crop_short), ("crop", crop), ("eval_short", (eval_short,))):
        if not sizes or min(sizes) < 1:
            raise UserError(f"data.augment.{name} = {list(sizes)}: expected positive sizes in pixels")
    if crop[0] > crop[1]:
        raise UserError(f"data.augment.crop = {list(crop)}: expected the smaller size first")
    if long <= max(*short, eval_short):
        raise UserError(f"data.augment.long = {long}: expected more than short and eval_short")
    if not 0 <= flip <= 1:
        raise UserError(f"data.augment.flip = {flip}: expected a probability")
    if split != "train":
        return v2.Resize(eval_short, max_size=long)
    resize = v2.RandomChoice([v2.Resize(size, max_size=long) for size in short])
    shrink = v2.RandomChoice([v2.Resize(size) for size in crop_short])
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(flip),
            v2.RandomChoice([resize, v2.Compose([shrink, RandomSizeCrop(*crop), resize])]),
            v2.SanitizeBoundingBoxes(),
        ]
    )


class RandomSizeCrop(v2.Transform):
    """Crop a window whose height and width are drawn apart from `smallest` … `largest` pixels, within the image."""

    def __init__(self, smallest: int, largest: int):
        super().__init__()
        self.smallest, self.largest = smallest, largest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        h, w = (_randint(min(self.smallest, side), min(self.largest, side)) for side in (height, width))
        return {"top": _randint(0, height - h), "left": _randint(0, width - w), "height": h, "width": w}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.crop, inpt, **params)


class RandomColorShift(v2.Transform):
    """Multiply an 8-bit image by a factor within 1 ± `gain` and add to each channel an offset within ± `offset`·255."""

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, gain: float, offset: float):
        super().__init__()
        self.gain, self.offset = gain, offset

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        factor, *offsets = (torch.rand(4) * 2 - 1).tolist()
        return {"factor": 1 + self.gain * factor, "offsets": [255 * self.offset * value for value in offsets]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        shift = torch.tensor(params["offsets"]).view(3, 1, 1)
        shifted = (inpt * params["factor"] + shift).round_().clamp_(0, 255)
        return tv_tensors.wrap(shifted.to(torch.uint8), like=inpt)


def _randint(low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, ()))
