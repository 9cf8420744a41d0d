"""Base class of the synthetic data sets, generated once into the cache."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from attnzoo.data.cache import cached_folder, check_cache
from attnzoo.data.registries import SPLITS
from attnzoo.data.rendering import Scene, SceneOptions, SceneRenderer, check_dataset_option

MAX_IMAGES = 10_000_000


@dataclass(frozen=True, kw_only=True)
class SyntheticSpec(SceneOptions, ABC):
    """Splits of rendered scenes, in a cache folder that `name` and the options identify.

    Each digit and each half of a photograph is used either in train or in val. Image i depends only on (seed, version,
    split, i) and the scene options, not on the number of images. With `seed: run`, each seed of a sweep trains on other
    images and validates on those of seed 0. `val_seed`: the seed of validation images if it is another.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    """Increment when the same options give other images."""

    train_images: int = 8000
    val_images: int = 300
    seed: int | Literal["run"] = 0
    val_seed: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, images in (("train_images", self.train_images), ("val_images", self.val_images)):
            check_dataset_option(option, images, 1 <= images <= MAX_IMAGES, f"from 1 to {MAX_IMAGES:,}")
        for option, seed in (("seed", self.seed), ("val_seed", self.val_seed)):
            check_dataset_option(option, seed, not isinstance(seed, int) or seed >= 0, "at least 0")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int]:
        return self.image_size, self.image_size

    @property
    def train_length(self) -> int:
        return self.train_images

    def fingerprint(self) -> str:
        return str(self.version)

    def check(self) -> None:
        """Both splits are generated with the same classes."""

    @abstractmethod
    def generate(self, folder: Path) -> None:
        """Write both splits into the empty `folder`."""

    def folder(self) -> Path:
        """The cache folder, generated on first use. Raises UserError if the cache cannot be written."""
        return cached_folder(self.name, self._cache_key(), self.generate)

    def check_cache(self, writable: bool) -> None:
        """Raise UserError if the cache folder could not be made; without `writable`, whatever its permissions here."""
        check_cache(self.name, self._cache_key(), writable)

    def _cache_key(self) -> dict[str, Any]:
        options = {key: _canonical(value) for key, value in asdict(self).items()}
        return options | {"version": self.version}

    def scenes(self, split: str) -> Iterator[Scene]:
        """The scenes of "train" or "val" in order."""
        renderer = SceneRenderer(self, split)
        seed = self.val_seed if split == "val" and self.val_seed is not None else self.seed
        assert seed != "run", "set by build_dataset"
        for i in range(getattr(self, f"{split}_images")):
            yield renderer.render(np.random.default_rng([seed, self.version, SPLITS.index(split), i]))


def _canonical(value: Any) -> Any:
    """Canonical JSON form of an option for the cache key: 20 and 20.0, lists and tuples are equal."""
    if isinstance(value, list | tuple):
        return [float(item) for item in value]
    return value if value is None or isinstance(value, str) else float(value)
