"""Transforms of pixels alone, applied to whole batches, and normalisation."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from attnzoo.data.checks import check_option

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for RGB in [0, 1]


class PixelTransform:
    """A transform that changes neither sizes nor boxes, for images of equal size; this one changes nothing."""

    def apply(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """8-bit images (B, 3, h, w) from 8-bit images; each depends only on its own seed."""
        return images


class Photometric(PixelTransform):
    """Multiplies each image by a factor in 1 ± `gain`, shifts each channel by up to ± `offset` · 255, and inverts.

    `invert`: the probability of inverting an image.
    """

    def __init__(self, gain: float, offset: float, invert: float):
        self.gain, self.offset, self.invert = gain, offset, invert

    def apply(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        uniform = torch.stack([torch.rand(5, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        factor = 1 + self.gain * (2 * uniform[:, :1] - 1)
        offsets = 255 * self.offset * (2 * uniform[:, 1:4] - 1)
        shifted = (images * factor[..., None, None]).add_(offsets[..., None, None]).round_().clamp_(0, 255)
        inverted = (uniform[:, 4] < self.invert)[:, None, None, None]
        return torch.where(inverted, 255 - shifted, shifted).to(torch.uint8)


def build_photometric(split: str, gain: float, offset: float, invert: float) -> PixelTransform:
    """The augmentation `photometric` of both tasks. Raises UserError for options outside 0…1."""
    for name, value in (("gain", gain), ("offset", offset), ("invert", invert)):
        check_option(f"data.augment.{name}", value, 0 <= value <= 1, "a number from 0 to 1")
    return Photometric(gain, offset, invert) if split == "train" else PixelTransform()


def apply_to_pixels(transform: PixelTransform, images: Sequence[Tensor], seeds: Sequence[int]) -> Sequence[Tensor]:
    """Transformed and normalised 8-bit images (3, hᵢ, wᵢ); as one batch if their sizes are equal."""
    if len({image.shape for image in images}) == 1:
        return normalise(transform.apply(torch.stack(list(images)), seeds)).unbind()
    return [apply_to_pixels(transform, [image], [seed])[0] for image, seed in zip(images, seeds, strict=True)]


def normalise(images: Tensor) -> Tensor:
    """8-bit images (…, 3, h, w) as float32 with ImageNet mean and standard deviation."""
    return F.normalize(F.to_dtype(images, torch.float32, scale=True), list(MEAN), list(STD), inplace=True)
