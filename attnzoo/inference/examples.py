"""Images of a data set with their ground truth, and what a model predicts for them, ready to be drawn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnzoo.data.pixels import MEAN, STD
from attnzoo.inference.records import Array
from attnzoo.models.detr.boxes import cxcywh_to_xyxy
from attnzoo.models.detr.output import DetectorOutput

NO_BOXES = np.zeros((0, 4))


@dataclass(frozen=True, eq=False)
class Example:
    """An image and its ground truth.

    - `inputs`: (1, 3, h, w), normalised, what the model takes
    - `picture`: (h, w, 3), 8-bit
    - `boxes`: (n, 4) as (x1, y1, x2, y2) in [0, 1]; without rows in classification
    - `labels`: the class of each box, or of the image
    - `original_size`: (h, w) of the image of a detection data set before it was scaled
    """

    inputs: Tensor
    picture: Array
    boxes: Array
    labels: tuple[int, ...]
    original_size: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Predictions:
    """The most probable class of each object query, or of the image, by descending score.

    - `queries`, `labels`: (n,) int
    - `scores`: (n,) in [0, 1]
    - `boxes`: (n, 4) as (x1, y1, x2, y2) in [0, 1]; without rows in classification
    """

    queries: Array
    labels: Array
    scores: Array
    boxes: Array


def load_examples(dataset: Any, count: int) -> list[Example]:
    """The first images of a data set of either task, as it gives them for evaluation."""
    return list(iterate_examples(dataset, count))


def iterate_examples(dataset: Any, count: int) -> Iterator[Example]:
    """`load_examples`, one at a time."""
    return (_example(*dataset[index]) for index in range(min(count, len(dataset))))


def _example(image: Tensor, target: Any) -> Example:
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    picture = ((image * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    if isinstance(target, dict):
        boxes, labels = cxcywh_to_xyxy(target["boxes"]).numpy(), tuple(target["labels"].tolist())
        height, width = target["orig_size"].tolist()
        return Example(image[None], picture, boxes, labels, (height, width))
    return Example(image[None], picture, NO_BOXES, (int(target),))


def read_predictions(output: DetectorOutput | Tensor, num_classes: int) -> Predictions:
    """Predictions for one image, from what a detector or a classifier (1, num_classes) returns for it.

    Detectors have sigmoid scores, or softmax scores if there is a logit of "no object" after `num_classes`.
    """
    if isinstance(output, DetectorOutput):
        logits = output.logits[-1, 0].float()
        probabilities = logits.softmax(-1)[:, :num_classes] if logits.shape[-1] > num_classes else logits.sigmoid()
        scores, labels = probabilities.max(-1)
        scores, queries = scores.sort(descending=True)
        boxes = cxcywh_to_xyxy(output.boxes[-1, 0].float())[queries].cpu().numpy()
        return Predictions(queries.cpu().numpy(), labels[queries].cpu().numpy(), scores.cpu().numpy(), boxes)
    scores, labels = output[0].float().softmax(-1).sort(descending=True)
    return Predictions(np.zeros(len(labels), dtype=int), labels.cpu().numpy(), scores.cpu().numpy(), NO_BOXES)


def class_name(names: Sequence[str], label: int) -> str:
    """The name of a class, or its index where there are no names."""
    return names[label] if label < len(names) else str(label)
