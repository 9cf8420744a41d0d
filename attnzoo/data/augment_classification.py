"""Classification transforms."""

from typing import Literal

import timm.data

from attnzoo.data.checks import check_option
from attnzoo.data.classification import CLASSIFICATION_AUGMENTATIONS, ImageTransform
from attnzoo.data.pixels import MEAN, STD, PixelTransform, build_photometric


@CLASSIFICATION_AUGMENTATIONS.register("none")
def none(split: str) -> PixelTransform:
    """No augmentation."""
    return PixelTransform()


@CLASSIFICATION_AUGMENTATIONS.register("photometric")
def photometric(split: str, *, gain: float = 0.15, offset: float = 0.08, invert: float = 0.3) -> PixelTransform:
    """Same as the detection augmentation `photometric`."""
    return build_photometric(split, gain, offset, invert)


@CLASSIFICATION_AUGMENTATIONS.register("timm")
def timm_augmentation(
    split: str,
    *,
    size: int = 224,
    scale: tuple[float, float] = (0.08, 1.0),
    hflip: float = 0.5,
    color_jitter: float = 0.4,
    auto_augment: str | None = "rand-m9-mstd0.5-inc1",
    re_prob: float = 0.25,
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic",
    crop_pct: float = 0.875,
    crop_mode: Literal["center", "squash"] = "center",
) -> ImageTransform:
    """timm's augmentation, with timm's option names; the defaults follow the published Swin and DAT recipes.

    Training: a random crop of `scale` of the area, resized to `size` pixels, horizontal flip with probability `hflip`,
    the timm policy `auto_augment` (null: color jitter), and random erasing with probability `re_prob`. Evaluation: a
    central square of `size` pixels from an image resized so that its shorter side ("center"), or each side ("squash",
    as DAT), is `size` / `crop_pct`.
    """
    for name, value in (("hflip", hflip), ("re_prob", re_prob)):
        check_option(f"data.augment.{name}", value, 0 <= value <= 1, "a probability")
    check_option("data.augment.size", size, size >= 1, "at least 1 pixel")
    check_option("data.augment.crop_pct", crop_pct, 0 < crop_pct <= 1, "a fraction, more than 0 and at most 1")
    ascending = 0 < scale[0] <= scale[1] <= 1
    check_option("data.augment.scale", list(scale), ascending, "two ascending fractions, more than 0 and at most 1")
    transform: ImageTransform = timm.data.create_transform(
        size,
        is_training=split == "train",
        scale=scale,
        hflip=hflip,
        color_jitter=color_jitter,
        auto_augment=auto_augment,
        re_prob=re_prob,
        re_mode="pixel",
        interpolation=interpolation if split == "train" or interpolation != "random" else "bicubic",
        mean=MEAN,
        std=STD,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    )
    return transform
