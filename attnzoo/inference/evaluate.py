"""Evaluation of a loaded model on a data set, with the predictions kept in a cache."""

import dataclasses
import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from attnzoo import environment, ops
from attnzoo.config.experiment import DetectionExperiment
from attnzoo.data.batches import collate, make_loader, val_batch_indices
from attnzoo.data.build import build_dataset, class_names, dataset_fingerprint, registries
from attnzoo.data.cache import cache_root
from attnzoo.data.classification import collate_classification
from attnzoo.data.coco import NO_CATEGORY
from attnzoo.data.config import DataConfig
from attnzoo.data.evaluate import CocoEvaluator, Detection, ImageDetections
from attnzoo.data.hashes import hash_file
from attnzoo.engine.classification import BatchResult, classify, summarize
from attnzoo.engine.detection import detect
from attnzoo.errors import UserError, as_options, check_type, plural
from attnzoo.files import JSON_ERRORS, read_json
from attnzoo.inference.loaded import LoadedModel, unnamed
from attnzoo.inference.progress import progress
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.rundir.folder import RunFolder, atomic_write

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Metrics, each in 0…1 but the loss, of `num_images` images.

    `metrics` are those of training: AP …, or top1, top5 and loss. `per_class` has, by class name, AP and AP50, or top1.
    `cached`: whether the predictions were in the cache. `differences`: class names of model and data set that differ.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    num_images: int
    cached: bool
    differences: list[str]


def validation_set(model: LoadedModel) -> Any:
    """The validation set of `model.settings.data`; training images need not be there. Raises UserError if it is not."""
    data = _validation_only(model.settings.data)
    replaced = {key for key, value in data.dataset.items() if key.startswith("train") and isinstance(value, str)}
    keys = {f"data.dataset.{key}": f"data.dataset.val{key.removeprefix('train')}" for key in replaced}
    with as_options(**keys):  # errors name the keys of the files that are read
        return build_dataset(data, "val", model.settings.seed)


def evaluate(model: LoadedModel, dataset: Any = None, *, per_class: bool = False, use_cache: bool = True) -> Evaluation:
    """Evaluate on `validation_set(model)`, or this `dataset`, which is the same, as in training.

    Predictions are kept in the cache of data sets, by the content of the weights, the settings, the data set and the
    version of the code. Raises UserError for a data set that is missing or damaged, or has more classes than the model.
    """
    check_type("model", model, (LoadedModel,), "what attnzoo.load_model returns")
    data = _validation_only(model.settings.data)
    dataset = validation_set(model) if dataset is None else dataset
    num_classes = dataset.num_classes
    if num_classes > model.model.num_classes:
        theirs = plural(num_classes, "class", "classes")
        raise UserError(f"the data set has {theirs}, the model only {model.model.num_classes}", key="data.dataset")
    run = _detect if isinstance(model.settings, DetectionExperiment) else _classify
    metrics, of_classes, cached = run(model, dataset, data, per_class, use_cache)
    differences = [
        f"{index} is {ours!r} in the model, {theirs!r} in the data set"
        for index, (ours, theirs) in enumerate(zip(model.class_names, class_names(data), strict=False))
        if ours != theirs and NO_CATEGORY not in (ours, theirs) and ours != unnamed(index)
    ]
    return Evaluation(metrics, of_classes, len(dataset), cached, differences)


def recorded_metrics(model: LoadedModel) -> tuple[int, dict[str, float]] | None:
    """Step and validation metrics that the run recorded for the checkpoint; None if it has not recorded any."""
    if model.run is None:
        return None
    step = int(model.weights.name.split(".")[0].rpartition("-")[2])
    metrics: dict[str, float] = {}
    for row in RunFolder(model.run).read_metrics():
        if row["step"] == step:
            metrics |= {key.removeprefix("val/"): value for key, value in row.items() if key.startswith("val/")}
    return (step, metrics) if metrics else None


def _validation_only(data: DataConfig) -> DataConfig:
    """The data set with the validation files in place of the training files, which evaluation does not need."""
    block = registries(data)[0].with_defaults(data.dataset, "data.dataset")
    for key, value in block.items():
        other = f"val{key.removeprefix('train')}"
        if key.startswith("train") and isinstance(value, str) and other in block:
            block[key] = block[other]
    return dataclasses.replace(data, dataset=block)


def _detect(
    model: LoadedModel, dataset: Any, data: DataConfig, per_class: bool, use_cache: bool
) -> tuple[dict[str, float], dict[str, dict[str, float]], bool]:
    settings = model.settings
    assert isinstance(settings, DetectionExperiment)
    assert isinstance(settings.model, DetectorConfig)
    classification, limit = settings.model.loss.classification, settings.max_detections

    def run() -> list[ImageDetections]:
        batches = _batches(dataset, data, collate)
        return detect(model.forward, dataset, batches, model.device, classification, limit, lambda: None).results

    saved, cached = _cached(model, data, run, use_cache)
    results = [ImageDetections(image, [Detection(*each) for each in found]) for image, found in saved]
    summary = CocoEvaluator(dataset, limit).summarize(results, per_class or settings.per_class)
    of_classes: dict[str, dict[str, float]] = defaultdict(dict)
    for key in [key for key in summary if "/" in key]:
        metric, _, name = key.partition("/")
        of_classes[name][metric] = summary[key] if settings.per_class and not per_class else summary.pop(key)
    return summary, dict(of_classes) if per_class else {}, cached


def _classify(
    model: LoadedModel, dataset: Any, data: DataConfig, per_class: bool, use_cache: bool
) -> tuple[dict[str, float], dict[str, dict[str, float]], bool]:
    def run() -> list[BatchResult]:
        batches = _batches(dataset, data, collate_classification)
        return classify(model.forward, dataset.num_classes, batches, model.device, lambda: None)

    saved, cached = _cached(model, data, run, use_cache)
    results = [BatchResult(*each) for each in saved]
    right: dict[int, list[bool]] = defaultdict(list)
    for result in results:
        for top, label in zip(result.top, result.labels, strict=True):
            right[label].append(top[0] == label)
    of_classes = {model.class_names[label]: {"top1": sum(right[label]) / len(right[label])} for label in sorted(right)}
    return summarize(results), of_classes if per_class else {}, cached


def _batches(dataset: Any, data: DataConfig, collate: Callable[[Any], Any]) -> Iterator[Any]:
    """As in training on one process, whose padding depends on the batch."""
    indices = val_batch_indices(len(dataset), data.val_batch_size or data.batch_size)
    return progress(make_loader(dataset, indices, data.workers, collate), len(indices), "evaluation")


def _cached(model: LoadedModel, data: DataConfig, run: Callable[[], Any], use_cache: bool) -> tuple[Any, bool]:
    """What `run` returns, as JSON has it, and whether it was in the cache."""
    fingerprint = dataset_fingerprint(data)
    settings = model.settings
    key = [
        hash_file(model.weights),
        dataclasses.asdict(settings.model),
        dataclasses.asdict(data),
        fingerprint,
        settings.seed,
        settings.train.precision,
        settings.train.channels_last,
        getattr(settings, "max_detections", None),
        settings.versions,
        environment.result_environment(model.device, ops.kernels(model.device.type)),
    ]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_root() / "predictions" / f"{digest}.json"
    use_cache = use_cache and fingerprint is not None
    if use_cache and path.is_file():
        try:
            return read_json(path), True
        except JSON_ERRORS:
            log.warning("%s: not readable, so the data set is evaluated again", path)
    results = run()
    if use_cache:
        try:
            with atomic_write(path) as file:
                json.dump(results, file)
        except OSError as error:
            log.warning("%s: predictions are not kept (%s)", path, error.strerror)
    return results, False
