"""Average precision and recall by pycocotools, from detections gathered image by image."""

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

AREAS = ("all", "small", "medium", "large")
MAX_DETECTIONS = (1, 10, 100)


class Detection(NamedTuple):
    category: int  # id
    score: float
    box: list[float]  # x, y, w, h in pixels of the original image


class ImageDetections(NamedTuple):
    """The detections of one image."""

    image_id: int
    detections: list[Detection]


class CocoEvaluator:
    """Collects predictions on a data set, or on one process's part of it, and measures them.

    `rows` holds one entry per image, so that the rows of several processes are simply put together; `summarize`
    refuses them unless they cover every image exactly once.
    """

    def __init__(self, dataset: DetectionDataset):
        self.dataset = dataset
        self.results: list[ImageDetections] = []

    def add(self, predictions: Sequence[dict[str, Tensor]], targets: Sequence[Target]) -> None:
        """Take one prediction per target: `scores` (n,), `labels` (n,) and `boxes` (n, 4), as `postprocess` makes them.

        Boxes are xyxy in pixels of the original image. Labels that stand for no category are dropped, as COCO's own
        evaluation does.
        """
        for prediction, target in zip(predictions, targets, strict=True):
            labels, scores = prediction["labels"].tolist(), prediction["scores"].tolist()
            boxes = box_convert(prediction["boxes"].double(), "xyxy", "xywh").tolist()
            found = [
                Detection(category, score, box)
                for label, score, box in zip(labels, scores, boxes, strict=True)
                if (category := self.dataset.categories[label]) is not None
            ]
            self.results.append(ImageDetections(int(target["image_id"]), found))

    def summarize(self, rows: Iterable[ImageDetections] | None = None, per_class: bool = False) -> dict[str, float]:
        """AP (mean over IoU 0.50…0.95), AP50, AP75, AP_S/M/L, AR_1/10/100 and AR_S/M/L, each in 0…1.

        `rows` are those of all processes; None: this one's. A figure for which there is no object is NaN. `per_class`
        adds `AP/<name>` and `AP50/<name>` for each category. Raises ValueError if an image is missing or doubled.
        """
        result = self._evaluate(sorted(self.results if rows is None else rows, key=lambda row: row.image_id))
        precision, recall = result["precision"], result["recall"]  # (IoU, recall, class, area, limit), without recall
        summary = {"AP": _mean(precision[..., 0, -1]), "AP50": _mean(precision[0, ..., 0, -1])}
        summary["AP75"] = _mean(precision[5, ..., 0, -1])
        summary |= {f"AP_{area[0].upper()}": _mean(precision[..., i, -1]) for i, area in enumerate(AREAS) if i}
        summary |= {f"AR_{limit}": _mean(recall[..., 0, i]) for i, limit in enumerate(MAX_DETECTIONS)}
        summary |= {f"AR_{area[0].upper()}": _mean(recall[..., i, -1]) for i, area in enumerate(AREAS) if i}
        if per_class:
            for i, category in enumerate(sorted(self.dataset.coco.cats)):
                name = self.dataset.coco.cats[category]["name"]
                summary[f"AP/{name}"] = _mean(precision[:, :, i, 0, -1])
                summary[f"AP50/{name}"] = _mean(precision[0, :, i, 0, -1])
        return summary

    def _evaluate(self, rows: list[ImageDetections]) -> dict[str, Any]:
        seen = Counter(row.image_id for row in rows)
        expected = Counter(self.dataset.image_ids)
        if seen != expected:
            raise ValueError(
                f"the rows do not cover the data set once: {len(expected - seen)} images are missing, "
                f"{sum((seen - expected).values())} rows are doubled or foreign"
            )
        small, medium = self.dataset.area_thresholds
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self.dataset.coco, to_coco(self._results(rows)), "bbox")
            parameters = evaluation.params
            parameters.imgIds = sorted(self.dataset.image_ids)
            parameters.maxDets = list(MAX_DETECTIONS)
            parameters.areaRngLbl = list(AREAS)
            parameters.areaRng = [[0, 1e10], [0, small], [small, medium], [medium, 1e10]]
            evaluation.evaluate()
            evaluation.accumulate()
        return dict(evaluation.eval)

    def _results(self, rows: list[ImageDetections]) -> dict[str, Any]:
        """The detections as the content of an annotation file; made here because COCO.loadRes fails on none at all."""
        content = self.dataset.coco.dataset
        found = [
            {"image_id": row.image_id, "category_id": category, "score": score, "bbox": box, "area": box[2] * box[3]}
            for row in rows
            for category, score, box in row.detections
        ]
        numbered = [entry | {"id": number, "iscrowd": 0} for number, entry in enumerate(found, start=1)]
        return {"images": content["images"], "categories": content["categories"], "annotations": numbered}


def _mean(values: NDArray[np.float64]) -> float:
    """The mean over settings that have objects, which pycocotools marks by values from 0; NaN if there are none."""
    valid = values[values >= 0]
    return float(valid.mean()) if valid.size else float("nan")
