"""Protocols and registries of data sets and augmentations."""

import reprlib
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from torch import Tensor

from attnzoo.data.pixels import PixelTransform
from attnzoo.errors import UserError
from attnzoo.registry import Registry

Target = dict[str, Tensor]
SampleTransform = Callable[[Tensor, Target], tuple[Tensor, Target]]
"""Maps a `tv_tensors.Image` (3, h, w) uint8 and a target with `boxes` (a `tv_tensors.BoundingBoxes`, xyxy) and `labels`
to an augmented pair. Randomness comes only from torch's global CPU generator."""

Transform = SampleTransform | PixelTransform

SPLITS = ("train", "val")

TransformT = TypeVar("TransformT", contravariant=True)
DatasetT = TypeVar("DatasetT", covariant=True)


class DatasetSpec(Protocol[TransformT, DatasetT]):
    """A data set as its config block describes it: a train and a val split with the same classes.

    The constructor checks the options; files are read later.
    """

    @property
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    def class_names(self) -> list[str]:
        """One name per class index, "N/A" for an index without class; empty if they are not known."""

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """(h, w) in pixels of all images, or of most if it varies; None if it is not known without reading images."""

    @property
    def train_length(self) -> int | None:
        """Number of training images if known without reading files, else None."""

    def fingerprint(self) -> str | None:
        """The version of a generated data set, a hash of the files of another; None if they cannot be hashed.

        Raises UserError or OSError for files that cannot be read.
        """

    def check(self) -> None:
        """Raise UserError if the classes of the splits differ, or a split has nothing to train on or to evaluate."""

    def build(self, split: str, transform: TransformT) -> DatasetT:
        """The "train" or "val" split with `transform` applied to its samples."""


class FileDatasetSpec:
    """Base class for data sets whose length and image size are only known from files."""

    @property
    def image_shape(self) -> tuple[int, int] | None:
        return None

    @property
    def train_length(self) -> None:
        return None


DETECTION_DATASETS: Registry[Callable[..., DatasetSpec[Transform, Any]]] = Registry("data set")
"""Constructors take keyword-only options and return a `DatasetSpec` of a `DetectionDataset`."""

DETECTION_AUGMENTATIONS: Registry[Callable[..., Transform]] = Registry("augmentation")
"""Constructors take the split positionally and keyword-only options; "val" gives the evaluation transform."""


@contextmanager
def transform_errors(name: Callable[[], str]) -> Iterator[None]:
    """Add the name of the image to the errors of a transform; those that depend on the image become UserErrors."""
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, OSError, RuntimeError, ValueError) as error:
        message = f"{name()}: data.augment cannot transform this image ({type(error).__name__}: {error})"
        raise UserError(" ".join(message.split()), key="data.augment") from error
    except Exception as error:
        error.add_note(f"while transforming {name()}")
        raise


def format_difference(train: Set[Any], val: Set[Any]) -> str:
    """What only one of the splits has, as part of a message."""
    parts = {"train": train - val, "val": val - train}
    return ", ".join(f"only in {split}: {reprlib.repr(sorted(items))}" for split, items in parts.items() if items)
