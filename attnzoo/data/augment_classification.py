"""What is done to images with one label before they enter a classifier."""

from typing import Literal

import timm.data
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from attnzoo.data import augment_detection
from attnzoo.data.classification import CLASSIFICATION_AUGMENTATIONS, ImageTransform
from attnzoo.data.coco import MEAN, STD
from attnzoo.errors import UserError


@CLASSIFICATION_AUGMENTATIONS.register("none")
def none(split: str) -> ImageTransform:
    """Images as they are, normalised by ImageNet's mean and deviation."""
    return lambda image: _normalise(tv_tensors.Image(F.pil_to_tensor(image)))


@CLASSIFICATION_AUGMENTATIONS.register("photometric")
def photometric(split: str, *, gain: float = 0.15, offset: float = 0.08, invert: float = 0.3) -> ImageTransform:
    """Colours only, in training only: that of the same name for detection."""
    transform = augment_detection.photometric(split, gain=gain, offset=offset, invert=invert)

    def apply(image: Image.Image) -> Tensor:
        return _normalise(transform(tv_tensors.Image(F.pil_to_tensor(image))))  # type: ignore[call-arg, arg-type]

    return apply


@CLASSIFICATION_AUGMENTATIONS.register("timm")
def timm_augmentation(
    split: str,
    *,
    size: int = 224,
    scale: tuple[float, float] = (0.08, 1.0),
    flip: float = 0.5,
    color_jitter: float = 0.4,
    auto_augment: str | None = "rand-m9-mstd0.5-inc1",
    erase: float = 0.25,
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic",
    crop: float = 0.875,
    resize: Literal["shorter", "squash"] = "shorter",
) -> ImageTransform:
    """timm's augmentation; the defaults are those of the published Swin and DAT recipes.

    Training: a random crop of `scale` of the area, resized to `size` pixels, flips, RandAugment or another policy in
    timm's notation (null: colour jitter instead), and random erasing with probability `erase`. Evaluation: a central
    square of `size` pixels from an image resized so that its shorter side ("shorter"), or each side ("squash", as DAT),
    is `size` / `crop`.
    """
    for name, value in (("flip", flip), ("erase", erase)):
        if not 0 <= value <= 1:
            raise UserError(f"data.augment.{name} = {value}: expected a probability")
    if size < 1 or not 0 < crop <= 1 or not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(f"data.augment: size = {size}, crop = {crop}, scale = {list(scale)}: expected shares up to 1")
    made = timm.data.create_transform(
        size,
        is_training=split == "train",
        scale=scale,
        hflip=flip,
        color_jitter=color_jitter,
        auto_augment=auto_augment,
        re_prob=erase,
        re_mode="pixel",
        interpolation=interpolation if split == "train" or interpolation != "random" else "bicubic",
        mean=MEAN,
        std=STD,
        crop_pct=crop,
        crop_mode="squash" if resize == "squash" else "center",
    )
    transform: ImageTransform = made
    return transform


def _normalise(image: Tensor) -> Tensor:
    pixels = F.to_dtype(image.as_subclass(Tensor), scale=True)
    return F.normalize(pixels, list(MEAN), list(STD), inplace=True)
