"""Predictions for many files: COCO JSON and annotated pictures."""

import json as json_format
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnzoo.data.build import category_ids
from attnzoo.data.coco import NO_CATEGORY
from attnzoo.errors import UserError, plural
from attnzoo.inference.annotate import annotate
from attnzoo.inference.image_files import ImageFile
from attnzoo.inference.loaded import Detections, LoadedModel, Prediction
from attnzoo.inference.pictures import read_image, size_of
from attnzoo.inference.progress import progress
from attnzoo.inference.settings import settings_of_run
from attnzoo.paths import output_folder, real_path
from attnzoo.rundir.folder import RunFolder, atomic_write

log = logging.getLogger(__name__)

JSON = "predictions.json"
MIN_SCORE = 1e-3  # of a detection that is worth a lower threshold

Found = tuple[str, Any, tuple[int, int]]  # the name of an image, its prediction, and its (height, width)


@dataclass(frozen=True)
class Written:
    """What was written: the JSON file and the folder of pictures; a summary; an error for each skipped image."""

    written: list[Path]
    summary: str
    errors: list[UserError]


def predict_files(
    model: LoadedModel,
    images: Sequence[ImageFile],
    folder: Path,
    *,
    threshold: float,
    batch_size: int = 1,
    json: bool = True,
    draw: bool = True,
) -> Written:
    """Predict for all images, and write `folder`/predictions.json and an annotated picture of each, with its name.

    Pictures are numbered where several images have the same name, whatever the suffix; the JSON names the images.

    Images that cannot be read, or are too small for the model, are skipped; without any other, nothing is written.
    Raises UserError for a threshold outside 0…1, and for a folder with one of the images, where a picture could replace
    it.
    """
    paths = [image.path for image in images]
    if among := [path for path in paths if real_path(path).parent == real_path(folder)]:
        message = f"folder = {folder}: the folder of {among[0]}, which a picture could replace; choose another"
        raise UserError(message, key="folder")
    output_folder(folder)
    entries: dict[int, tuple[Prediction, tuple[int, int]]] = {}
    errors: dict[int, UserError] = {}
    for index, prediction in progress(model.predict_each(paths, threshold, batch_size=batch_size), len(images)):
        if isinstance(prediction, UserError):
            errors[index] = prediction
            continue
        size = prediction.size if isinstance(prediction, Detections) else size_of(paths[index])
        entries[index] = prediction, size
        if draw:
            target = (folder / images[index].picture).with_suffix(".jpg")
            target.parent.mkdir(parents=True, exist_ok=True)
            annotate(read_image(paths[index]), prediction).save(target, quality=92)
    skipped = [errors[index] for index in sorted(errors)]
    if not entries:
        return Written([], "", skipped)
    found = [(images[index].name, *entries[index]) for index in sorted(entries)]
    written = [folder / JSON] if json else []
    if json:
        names = model.class_names
        detection = model.task == "detection"
        content = _coco(found, names, _category_ids(model)) if detection else _classes(found, names)
        with atomic_write(folder / JSON) as file:
            json_format.dump(content, file, indent=1)
    return Written([*written, *([folder] if draw else [])], _summary(model, found, threshold), skipped)


def _summary(model: LoadedModel, found: Sequence[Found], threshold: float) -> str:
    if model.task != "detection":
        return "classified"
    count = sum(len(prediction.labels) for _, prediction, _ in found)
    summary = f"{plural(count, 'detection')} with a score of at least {threshold:g}"
    if count:
        return summary
    highest, best = max((each.highest, name) for name, each, _ in found if isinstance(each, Detections))
    return f"{summary}; the highest score is {highest:.2g}, in {best}: {_lower_threshold(highest)}"


def _lower_threshold(score: float) -> str:
    """A threshold just below a score, with one digit that is not zero; words if there is none."""
    if score < MIN_SCORE:
        return "this model has found nothing"
    digits = -math.floor(math.log10(score))
    return f"a threshold of {math.floor(score * 10**digits) / 10**digits:.{digits}f} shows it"


def _category_ids(model: LoadedModel) -> list[int]:
    """The category id of each class index, of the data set that a run was trained with; else the index."""
    indices = list(range(len(model.class_names)))
    if model.run is None:
        return indices
    data = settings_of_run(RunFolder(model.run)).data  # whatever the overrides
    if data.dataset.get("labels", "category_id") == "category_id":  # ids are the indices
        return indices
    try:
        ids = category_ids(data)
    except (OSError, UserError) as error:
        log.warning("%s: category ids are class indices, as the data set of the run cannot be read (%s)", JSON, error)
        return indices
    if ids is None:
        return indices
    if len(ids) != len(indices):
        told = f"{plural(len(ids), 'class', 'classes')}, the model {len(indices)}"
        log.warning("%s: category ids are class indices, as the data set of the run has now %s", JSON, told)
        return indices
    return [index if each is None else each for index, each in enumerate(ids)]


def _coco(found: Sequence[Found], names: Sequence[str], ids: Sequence[int]) -> dict[str, Any]:
    """A COCO instances file whose annotations have a `score`; `names` and category ids are by class index."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, prediction, (height, width)) in enumerate(found, start=1):
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        rows = zip(prediction.boxes.tolist(), prediction.scores.tolist(), prediction.labels.tolist(), strict=True)
        for (x1, y1, x2, y2), score, label in rows:
            box = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": ids[label], "bbox": box}
                | {"area": round(box[2] * box[3], 2), "iscrowd": 0, "score": round(score, 5)}
            )
    categories = [{"id": each, "name": name} for each, name in zip(ids, names, strict=True) if name != NO_CATEGORY]
    return {"images": images, "annotations": annotations, "categories": categories}


def _classes(found: Sequence[Found], names: Sequence[str]) -> dict[str, Any]:
    """The best classes of each image, with their probabilities."""
    images = [
        {"id": number, "file_name": name, "width": width, "height": height}
        | {
            "classes": [
                {"category_id": label, "name": names[label], "score": round(score, 5)}
                for label, score in zip(prediction.labels.tolist(), prediction.scores.tolist(), strict=True)
            ]
        }
        for number, (name, prediction, (height, width)) in enumerate(found, start=1)
    ]
    return {"images": images, "categories": [{"id": index, "name": name} for index, name in enumerate(names)]}
