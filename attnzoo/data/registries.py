"""What a data set and an augmentation are, and the tables in which they are found by name."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from torch import Tensor

from attnzoo.registry import Registry

Target = dict[str, Tensor]
Transform = Callable[[Tensor, Target], tuple[Tensor, Target]]
"""From a `tv_tensors.Image` (3, h, w) uint8 and a target with `boxes` (a `tv_tensors.BoundingBoxes`, xyxy) and
`labels` to the same, augmented. Randomness comes from torch's global CPU generator alone."""

SPLITS = ("train", "val")


TransformT = TypeVar("TransformT", contravariant=True)
DatasetT = TypeVar("DatasetT", covariant=True)


class DatasetSpec(Protocol[TransformT, DatasetT]):
    """What a data set's block describes: a train and a val split with the same classes.

    Options are checked when it is made; files are read when a split is opened.
    """

    @property
    def num_classes(self) -> int:
        """The number of class indices that labels run over."""

    @property
    def shape(self) -> tuple[int, int] | None:
        """(h, w) in pixels where all images have the same, known without reading one."""

    @property
    def train_length(self) -> int | None:
        """The number of training images where it is known without reading files."""

    def build(self, split: str, transform: TransformT) -> DatasetT:
        """The "train" or "val" split; its samples go through `transform`."""


class OnDisk:
    """For sources whose files alone know how many images there are, and of what shapes."""

    @property
    def shape(self) -> None:
        return None

    @property
    def train_length(self) -> None:
        return None


DETECTION_DATASETS: Registry[Callable[..., DatasetSpec[Transform, Any]]] = Registry("data set")
"""Constructors take keyword-only options and return a `DatasetSpec` of a `DetectionDataset`."""

DETECTION_AUGMENTATIONS: Registry[Callable[..., Transform]] = Registry("augmentation")
"""Constructors take the split positionally and keyword-only options; for "val" they return what evaluation needs."""
