"""`digits`: handwritten digit classification on photo backgrounds; needs no download."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from PIL import Image

from attnzoo.data.classification import CLASSIFICATION_DATASETS, ClassificationDataset, ImageTransform, open_folder
from attnzoo.data.images import decoded_images
from attnzoo.data.registries import SPLITS
from attnzoo.data.synthetic import SyntheticSpec


@CLASSIFICATION_DATASETS.register("digits")
@dataclass(frozen=True, kw_only=True)
class Digits(SyntheticSpec):
    """One of scikit-learn's 8x8 digits, randomly placed, scaled and rotated, on a crop of its photographs.

    Rendered like `digit_scenes` and cached with one folder per class. `clutter` adds unlabelled distractors. Options:
    those of `SceneOptions` (`objects` is fixed), the number of images per split, and the seed.
    """

    name: ClassVar[str] = "digits"
    version: ClassVar[int] = 1

    objects: tuple[int, int] = field(default=(1, 1), init=False)
    image_size: int = 48
    sizes: tuple[float, float] = (24.0, 40.0)
    contrast: tuple[float, float] = (110.0, 200.0)
    val_images: int = 1000

    def build(self, split: str, transform: ImageTransform) -> ClassificationDataset:
        """The split from the cache; both splits are generated on first use."""
        source = open_folder(self._folder / split)
        dataset = ClassificationDataset(source, self.num_classes, transform, cache_in_memory=True)
        files = [Path(path) for path, _ in source.samples]
        dataset.decoded = decoded_images(self._folder / f"{split}.npy", files, self.image_size)
        return dataset

    @cached_property
    def _folder(self) -> Path:
        return self.folder()

    def generate(self, folder: Path) -> None:
        """Write both splits as train/LABEL/ and val/LABEL/."""
        for split in SPLITS:
            for label in range(self.num_classes):
                (folder / split / str(label)).mkdir(parents=True)
            for i, scene in enumerate(self.scenes(split)):
                (shown,) = scene.objects
                Image.fromarray(scene.pixels).save(folder / split / str(shown.label) / f"{i:06d}.png", compress_level=0)
