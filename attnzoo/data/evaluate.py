"""COCO average precision and recall by pycocotools, from per-image detections."""

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.ops import box_convert

from attnzoo.data.annotations import to_coco
from attnzoo.data.coco import DetectionDataset
from attnzoo.data.registries import Target

AREAS = ("", "_S", "_M", "_L")  # all, small, medium, large


class Detection(NamedTuple):
    category: int  # id
    score: float
    box: list[float]  # x, y, w, h in pixels of the original image


class ImageDetections(NamedTuple):
    image_id: int
    detections: list[Detection]


class CocoEvaluator:
    """Collects predictions on a data set, or on one rank's part of it, and evaluates them.

    `results` has one entry per image, so the results of all ranks can be concatenated; `summarize` requires every image
    exactly once. `max_detections`, at least 1, is the number of detections per image and class that count, with the
    highest scores.
    """

    def __init__(self, dataset: DetectionDataset, max_detections: int = 100):
        self.dataset = dataset
        # COCO's maxDets: recall is also measured with fewer detections
        self.max_detections = [n for n in (1, 10) if n < max_detections] + [max_detections]
        self.results: list[ImageDetections] = []

    def add(self, predictions: Sequence[dict[str, Tensor]], targets: Sequence[Target]) -> None:
        """Add one prediction per target: `scores` (n,), `labels` (n,), `boxes` (n, 4), as returned by `postprocess`.

        Boxes are xyxy in pixels of the original image. Labels without a category are ignored, as in COCO evaluation:
        gaps between category ids, and classes of the model that the data set does not have.
        """
        category_of = dict(enumerate(self.dataset.categories))
        for prediction, target in zip(predictions, targets, strict=True):
            labels, scores = prediction["labels"].tolist(), prediction["scores"].tolist()
            boxes = box_convert(prediction["boxes"].double(), "xyxy", "xywh").tolist()
            detections = [
                Detection(category, score, box)
                for label, score, box in zip(labels, scores, boxes, strict=True)
                if (category := category_of.get(label)) is not None
            ]
            self.results.append(ImageDetections(int(target["image_id"]), detections))

    def summarize(self, results: Iterable[ImageDetections] | None = None, per_class: bool = False) -> dict[str, float]:
        """The metrics of COCO, each in 0…1: AP (mean over IoU 0.50…0.95), AP50, AP75, AP_S/M/L, AR_1/10/100, AR_S/M/L.

        The last of AR_1/10/100 is that of `max_detections`. `results`: of all ranks (default: this one's). `per_class`
        adds `AP/<name>` and `AP50/<name>` per category, with the id added to a name that several categories have.
        Metrics without ground truth are NaN. Raises ValueError if an image is missing or duplicated.
        """
        results = sorted(self.results if results is None else results, key=lambda result: result.image_id)
        self._check_complete(results)
        evaluation = self._evaluate(results)
        precision = evaluation.eval["precision"]  # (IoU, recall, class, area, max detections)
        recall = evaluation.eval["recall"]  # (IoU, class, area, max detections)
        # not COCOeval.summarize, which gives no AP unless max_detections is 100
        summary = {"AP": _mean(precision[..., 0, -1])}
        summary |= {"AP50": _mean(precision[0, ..., 0, -1]), "AP75": _mean(precision[5, ..., 0, -1])}
        summary |= {f"AP{area}": _mean(precision[..., i, -1]) for i, area in enumerate(AREAS) if area}
        summary |= {f"AR_{n}": _mean(recall[..., 0, i]) for i, n in enumerate(self.max_detections)}
        summary |= {f"AR{area}": _mean(recall[..., i, -1]) for i, area in enumerate(AREAS) if area}
        if per_class:
            for i, name in enumerate(self._unique_names(evaluation.params.catIds)):
                summary[f"AP/{name}"] = _mean(precision[:, :, i, 0, -1])
                summary[f"AP50/{name}"] = _mean(precision[0, :, i, 0, -1])
        return summary

    def _unique_names(self, categories: Sequence[int]) -> list[str]:
        names = [str(self.dataset.coco.cats[category]["name"]) for category in categories]
        while repeated := {name for name, count in Counter(names).items() if count > 1}:  # again if a name has "(id 3)"
            names = [
                f"{name} (id {category})" if name in repeated else name
                for name, category in zip(names, categories, strict=True)
            ]
        return names

    def _check_complete(self, results: list[ImageDetections]) -> None:
        actual = Counter(result.image_id for result in results)
        expected = Counter(self.dataset.image_ids)
        if actual != expected:
            raise ValueError(
                f"results do not match the data set: {(expected - actual).total()} missing, "
                f"{(actual - expected).total()} duplicate or unknown images"
            )

    def _evaluate(self, results: list[ImageDetections]) -> COCOeval:
        small, medium = self.dataset.area_thresholds
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self.dataset.coco, to_coco(self._annotations(results)), "bbox")
            evaluation.params.imgIds = sorted(self.dataset.image_ids)
            evaluation.params.maxDets = self.max_detections
            evaluation.params.areaRng = [[0, 1e10], [0, small], [small, medium], [medium, 1e10]]
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation

    def _annotations(self, results: list[ImageDetections]) -> dict[str, Any]:
        """The detections as the content of an annotation file; COCO.loadRes fails on an empty list."""
        content = self.dataset.coco.dataset
        detections = [
            {"image_id": result.image_id, "category_id": category, "score": score, "bbox": box, "area": box[2] * box[3]}
            for result in results
            for category, score, box in result.detections
        ]
        annotations = [detection | {"id": i, "iscrowd": 0} for i, detection in enumerate(detections, start=1)]
        return {"images": content["images"], "categories": content["categories"], "annotations": annotations}


def _mean(values: NDArray[np.float64]) -> float:
    """Mean over the settings with ground truth; pycocotools marks those without by -1. NaN if there are none."""
    valid = values[values >= 0]
    return float(valid.mean()) if valid.size else float("nan")
