"""What the built-in data sets share: their splits are drawn once, into the cache."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from attnzoo.data.cache import cached_folder
from attnzoo.data.registries import SPLITS
from attnzoo.data.rendering import CLASSES, Scene, SceneOptions, SceneRenderer, require


@dataclass(frozen=True, kw_only=True)
class SyntheticSpec(SceneOptions, ABC):
    """Splits of scenes, drawn into a folder of the cache that is called after `name` and the options.

    Digits of each class and halves of each photograph belong to train or to val, never to both. Image i depends on
    (seed, version, split, i) and the options of its look alone, not on how many images there are.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    """Raised whenever the same options would give other images."""

    train_images: int = 8000
    val_images: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("train_images", self.train_images, self.train_images >= 1, "at least 1")
        require("val_images", self.val_images, self.val_images >= 1, "at least 1")
        require("seed", self.seed, self.seed >= 0, "at least 0")

    @property
    def num_classes(self) -> int:
        return CLASSES

    @property
    def shape(self) -> tuple[int, int]:
        return self.image_size, self.image_size

    @property
    def train_length(self) -> int:
        return self.train_images

    @abstractmethod
    def write(self, folder: Path) -> None:
        """SampleIndex both splits into `folder`."""

    def folder(self) -> Path:
        """The folder that `write` filled, now or before. Raises UserError if the cache cannot be written."""
        options = {key: _as_json(value) for key, value in asdict(self).items()}
        return cached_folder(self.name, options | {"version": self.version}, self.write)

    def scenes(self, split: str) -> Iterator[Scene]:
        """The scenes of "train" or "val" in their order."""
        renderer = SceneRenderer(self, split)
        for i in range(getattr(self, f"{split}_images")):
            yield renderer.render(np.random.default_rng([self.seed, self.version, SPLITS.index(split), i]))


def _as_json(value: Any) -> Any:
    """An option as JSON, equal for equal options: 20 and 20.0, lists and tuples."""
    return [float(item) for item in value] if isinstance(value, list | tuple) else float(value)
