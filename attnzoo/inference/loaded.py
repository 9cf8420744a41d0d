"""A model that is loaded for use: from images to boxes, or to classes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from attnzoo.config.experiment import DetectionExperiment, ExperimentConfig
from attnzoo.data.build import evaluation_transform
from attnzoo.errors import UserError, as_yaml, check_type
from attnzoo.inference.pictures import ImageLike, as_list, cannot_run, read_image, size_of
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.models.detr.detector import Detector
from attnzoo.models.detr.postprocess import postprocess
from attnzoo.models.vit.classifier import Classifier

THRESHOLD = 0.3
TOP = 5


def unnamed(index: int) -> str:
    """What a class is called whose name is not known."""
    return f"class {index}"


@dataclass(frozen=True, eq=False)
class Detections:
    """Objects in one image by descending score.

    - `boxes`: (n, 4) as (x1, y1, x2, y2) in pixels of the original image, not clipped to it
    - `scores`: (n,) in [0, 1]
    - `labels`: (n,) int64, class indices
    - `names`: the n class names
    - `size`: (height, width) of the original image in pixels
    - `highest`: the highest score in the image, also if it is below the threshold
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: list[str]
    size: tuple[int, int]
    highest: float


@dataclass(frozen=True, eq=False)
class Classes:
    """The most probable classes of one image, at most five.

    - `probabilities`: (C,) of all classes, by index
    - `scores`: (k,) the highest probabilities, descending
    - `labels`: (k,) int64, their class indices
    - `names`: the k class names
    """

    probabilities: Tensor
    scores: Tensor
    labels: Tensor
    names: list[str]


Prediction = Detections | Classes


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """What `load_model` returns.

    - `model`: the torch module, in evaluation mode
    - `settings`: those of the run, or of the published recipe; `settings.model`, `settings.data` as in experiment files
    - `class_names`: one per class index; "N/A" for an index without class
    - `weights`: the file that was read
    - `run`: the run folder that it is in; None for published weights
    """

    model: Detector | Classifier
    settings: ExperimentConfig
    class_names: list[str]
    weights: Path
    run: Path | None = None

    @property
    def task(self) -> str:
        """`detection` or `classification`."""
        return self.settings.task

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def preprocess(self, image: ImageLike) -> Tensor:
        """One image as the model takes it, (3, h, w) on the CPU: upright RGB, resized and normalised as in evaluation.

        Raises UserError for a file that is missing, damaged or unsupported, for an array of another form, and for an
        image that the preprocessing does not take, such as one of a single row; TypeError for what is no image.
        """
        picture = read_image(image)
        try:
            return self._transform(picture)
        except Exception as error:
            raise cannot_run(image, (picture.height, picture.width), error) from error

    @cached_property
    def _transform(self) -> Callable[[Image.Image], Tensor]:
        return evaluation_transform(self.settings.data)

    @torch.no_grad()
    def forward(self, images: Tensor, mask: Tensor | None = None) -> Any:
        """What the model returns for preprocessed images (B, 3, H, W), in the precision that it was evaluated in.

        `mask` (B, H, W) is True where images are padded.
        """
        check_type("images", images, (Tensor,), "a tensor (B, 3, H, W)")
        device = self.device
        bf16 = self.settings.train.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            return self.model(images.to(device), None if mask is None else mask.to(device))

    def predict(
        self, images: ImageLike | Sequence[ImageLike], threshold: float = THRESHOLD, *, batch_size: int = 1
    ) -> list[Detections] | list[Classes]:
        """Objects with a score of at least `threshold`, or the classes, of each image, in their order.

        Images are PIL images, paths, arrays (h, w, 3) or (h, w), or tensors (3, h, w), one or several: 8-bit integers,
        or floating-point numbers in [0, 1] that are not normalised. Files are turned by their EXIF orientation. Up to
        `batch_size` images of the same size share a batch, so nothing is padded. Classifiers have no threshold.

        Raises UserError as `preprocess` does, for an image too small for the model, and for a threshold outside 0…1;
        TypeError for what are no images.
        """
        results: dict[int, Any] = {}
        for index, result in self.predict_each(as_list(images), threshold, batch_size=batch_size):
            if isinstance(result, UserError):
                raise result
            results[index] = result
        return [results[index] for index in sorted(results)]

    def predict_each(
        self, images: Sequence[ImageLike], threshold: float = THRESHOLD, *, batch_size: int = 1
    ) -> Iterator[tuple[int, Prediction | UserError]]:
        """As `predict`, one by one with the index of the image: by size, an error for each that cannot be used."""
        check_type("threshold", threshold, (Real,), "a number from 0 to 1")
        check_type("batch_size", batch_size, (Integral,), "a number of images")
        if not 0 <= threshold <= 1:
            raise UserError(f"threshold = {as_yaml(threshold)}: expected a number from 0 to 1", key="threshold")
        if batch_size < 1:
            raise UserError(f"batch_size = {batch_size}: expected at least 1", key="batch_size")
        return self._predict_each(images, threshold, batch_size)

    def _predict_each(
        self, images: Sequence[ImageLike], threshold: float, batch_size: int
    ) -> Iterator[tuple[int, Prediction | UserError]]:
        sizes: dict[int, tuple[int, int]] = {}
        for index, image in enumerate(images):
            try:
                sizes[index] = size_of(image)
            except UserError as error:
                yield index, error
        by_size = sorted(sizes, key=lambda index: (sizes[index], index))
        batch: list[tuple[int, Tensor]] = []
        for index in by_size:
            try:
                prepared = self.preprocess(images[index])
            except UserError as error:
                yield index, error
                continue
            if batch and (len(batch) == batch_size or batch[0][1].shape != prepared.shape):
                yield from self._predict_batch(batch, images, sizes, threshold)
                batch = []
            batch.append((index, prepared))
        if batch:
            yield from self._predict_batch(batch, images, sizes, threshold)

    def _predict_batch(
        self,
        batch: Sequence[tuple[int, Tensor]],
        images: Sequence[ImageLike],
        sizes: dict[int, tuple[int, int]],
        threshold: float,
    ) -> Iterator[tuple[int, Prediction | UserError]]:
        indices = [index for index, _ in batch]
        try:
            output = self.forward(torch.stack([image for _, image in batch]))
        except Exception as error:  # images too small for the model, or too large for memory
            if len(batch) > 1:
                for each in batch:
                    yield from self._predict_batch([each], images, sizes, threshold)
                return
            (index,) = indices
            refusal = cannot_run(images[index], sizes[index], error)
            refusal.__cause__ = error
            yield index, refusal
            return
        results: Iterable[Prediction]
        if self.task == "detection":
            results = self._detections(output, [sizes[index] for index in indices], threshold)
        else:
            results = map(self._classes, output.float().softmax(-1).cpu())
        yield from zip(indices, results, strict=True)

    def _detections(self, output: Any, sizes: list[tuple[int, int]], threshold: float) -> Iterator[Detections]:
        assert isinstance(self.settings, DetectionExperiment)
        assert isinstance(self.settings.model, DetectorConfig)
        classification, limit = self.settings.model.loss.classification, self.settings.max_detections
        for found, size in zip(postprocess(output, torch.tensor(sizes), classification, limit), sizes, strict=True):
            kept = found["scores"] >= threshold
            boxes, scores, labels = (found[key][kept].cpu() for key in ("boxes", "scores", "labels"))
            highest = float(found["scores"].max()) if len(found["scores"]) else 0.0
            yield Detections(boxes, scores, labels, self._names(labels), size, highest)

    def _classes(self, probabilities: Tensor) -> Classes:
        scores, labels = probabilities.topk(min(TOP, len(probabilities)))
        return Classes(probabilities, scores, labels, self._names(labels))

    def _names(self, labels: Tensor) -> list[str]:
        return [self.class_names[label] for label in labels.tolist()]
