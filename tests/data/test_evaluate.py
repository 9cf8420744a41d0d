"""COCO evaluation against direct use of pycocotools, hand-made cases, and results of several ranks."""

import contextlib
import io
import math

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from support.data import coco_config, edit

from attnzoo.data.batches import val_batch_indices
from attnzoo.data.build import build_dataset
from attnzoo.data.evaluate import CocoEvaluator

NAMES = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR_1", "AR_10", "AR_100", "AR_S", "AR_M", "AR_L")


def predictions(dataset, position, noise):
    """The objects of an image as detections with noisy boxes, and one false positive."""
    generator = torch.Generator().manual_seed(position)
    _, target = dataset.load_raw(position)
    boxes = torch.cat([target["boxes"].as_subclass(torch.Tensor), torch.tensor([[1.0, 1, 9, 9]])])
    boxes = boxes + noise * torch.randn(boxes.shape, generator=generator)
    labels = torch.cat([target["labels"], torch.tensor([3])])
    return {"scores": torch.rand(len(boxes), generator=generator), "labels": labels, "boxes": boxes}


def evaluator(dataset, indices, noise=1.0):
    result = CocoEvaluator(dataset)
    for i in indices:
        result.add([predictions(dataset, i, noise)], [dataset[i][1]])
    return result


def test_equals_pycocotools_used_directly(root):
    edit(root, lambda content: [a.update(id=i) for i, a in enumerate(content["annotations"], start=1)])
    dataset = build_dataset(coco_config(root), "val")
    ours = evaluator(dataset, range(5)).summarize()
    detections = []
    for i, image_id in enumerate(dataset.image_ids):
        scores, labels, boxes = predictions(dataset, i, 1.0).values()
        for score, label, (x0, y0, x1, y1) in zip(scores.tolist(), labels.tolist(), boxes.tolist(), strict=True):
            box = [x0, y0, x1 - x0, y1 - y0]
            detections.append({"image_id": image_id, "category_id": label, "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(root / "annotations" / "all.json"))
        direct = COCOeval(truth, truth.loadRes(detections), "bbox")
        direct.evaluate()
        direct.accumulate()
        direct.summarize()
    expected = [float("nan") if value < 0 else value for value in direct.stats]
    assert 0 < ours["AP"] < 1
    assert [ours[name] for name in NAMES] == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_perfect_detections_score_one_even_for_annotation_zero(root):
    edit(root, lambda content: [a.update(bbox=[1, 1, 10, 10]) for a in content["annotations"]])
    dataset = build_dataset(coco_config(root), "val")
    result = CocoEvaluator(dataset)
    for i in range(5):
        _, target = dataset.load_raw(i)
        boxes = target["boxes"].as_subclass(torch.Tensor)
        result.add([{"scores": torch.ones(len(boxes)), "labels": target["labels"], "boxes": boxes}], [dataset[i][1]])
    summary = result.summarize(per_class=True)
    # Image 1 has two bees in one place, of which one detection each is right.
    assert (summary["AP"], summary["AP/bee"], summary["AP50/cat"]) == pytest.approx((1, 1, 1))


def test_classes_of_the_same_name_have_unique_keys(root):
    edit(root, lambda content: content["categories"][0].update(name="bee"))  # ant, of image 4, is named as id 3
    dataset = build_dataset(coco_config(root), "val")
    result = CocoEvaluator(dataset)
    for i in range(5):
        _, target = dataset.load_raw(i)
        ants = target["labels"] == 1
        boxes = torch.tensor([[20.0, 10, 60, 50]]).expand(int(ants.sum()), 4)  # as annotated, over the border
        result.add(
            [{"scores": torch.ones(len(boxes)), "labels": target["labels"][ants], "boxes": boxes}], [dataset[i][1]]
        )
    summary = result.summarize(per_class=True)
    assert [key for key in summary if key.startswith("AP50/")] == ["AP50/bee (id 1)", "AP50/bee (id 3)", "AP50/cat"]
    assert [summary[f"AP/bee (id {i})"] for i in (1, 3)] == pytest.approx([1, 0])


def test_class_named_as_another_with_its_id_has_a_key_of_its_own(root):
    names = {1: "a", 3: "a (id 1)", 7: "a"}
    edit(root, lambda content: [category.update(name=names[category["id"]]) for category in content["categories"]])
    dataset = build_dataset(coco_config(root), "val")
    result = CocoEvaluator(dataset)
    for i in range(5):
        _, target = dataset.load_raw(i)
        boxes = target["boxes"].as_subclass(torch.Tensor)
        result.add([{"scores": torch.ones(len(boxes)), "labels": target["labels"], "boxes": boxes}], [dataset[i][1]])
    keys = [key for key in result.summarize(per_class=True) if key.startswith("AP/")]
    assert keys == ["AP/a (id 1) (id 1)", "AP/a (id 1) (id 3)", "AP/a (id 7)"]


def test_one_of_two_objects_detected(root):
    dataset = build_dataset(coco_config(root), "val")
    result = CocoEvaluator(dataset)
    for i in range(5):
        _, target = dataset.load_raw(i)
        cats = target["labels"] == 7  # objects in images 1 and 2, of which the first is found; no others are reported
        keep = cats if i == 0 else torch.zeros_like(cats)
        # The box as annotated reaches over the border; clamped, it overlaps it by 100/225 and so counts as missed.
        boxes = torch.tensor([[-5.0, -5, 10, 10]]).expand(int(keep.sum()), 4)
        result.add(
            [{"scores": torch.ones(len(boxes)), "labels": target["labels"][keep], "boxes": boxes}], [dataset[i][1]]
        )
    summary = result.summarize(per_class=True)
    assert summary["AP50/cat"] == pytest.approx(51 / 101)  # recall 0.50: the 51 points 0 … 0.50 of 101
    assert summary["AP50/ant"] == summary["AP50/bee"] == 0
    assert summary["AR_100"] == pytest.approx(0.5 / 3)


def test_no_detections_score_zero_and_areas_without_objects_nan(root):
    dataset = build_dataset(coco_config(root), "val")
    result = CocoEvaluator(dataset)
    nothing = {"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    for i in range(5):
        result.add([nothing], [dataset[i][1]])
    summary = result.summarize()
    assert summary["AP"] == summary["AP50"] == summary["AR_100"] == 0
    assert math.isnan(summary["AP_L"])


def crowd_image(root):
    """The data set with 120 cats in image 3, and detections of all objects."""
    cats = [[4 * column, 5 * row, 4, 5] for row in range(10) for column in range(12)]

    def add(content):
        for i, box in enumerate(cats, start=len(content["annotations"])):
            cat = {"image_id": 3, "category_id": 7, "bbox": box, "area": 20, "iscrowd": 0}
            content["annotations"].append(cat | {"id": i})
        for i, annotation in enumerate(content["annotations"], start=1):
            annotation.update(id=i)

    edit(root, add)
    dataset = build_dataset(coco_config(root), "val")
    detections = []
    for i in range(5):
        _, target = dataset.load_raw(i)
        boxes = target["boxes"].as_subclass(torch.Tensor)
        detections.append({"scores": torch.linspace(0.9, 0.1, len(boxes)), "labels": target["labels"], "boxes": boxes})
    return dataset, detections


@pytest.mark.parametrize(
    ("limit", "recalls"),
    [(100, ["AR_1", "AR_10", "AR_100"]), (120, ["AR_1", "AR_10", "AR_120"]), (10, ["AR_1", "AR_10"]), (1, ["AR_1"])],
)
def test_max_detections_limits_precision_and_recall(root, limit, recalls):
    dataset, detections = crowd_image(root)
    result = CocoEvaluator(dataset, limit)
    for i in range(5):
        result.add([detections[i]], [dataset[i][1]])
    summary = result.summarize(per_class=True)
    assert [name for name in summary if name.startswith("AR_") and name[3:].isdigit()] == recalls
    num_detected = {100: 102, 120: 122, 10: 12, 1: 3}[limit] - 1  # of 122 cats; that of image 1 comes too late
    cats = summary["AP50/cat"]
    assert cats == pytest.approx(num_detected / 122, abs=0.02)
    assert summary["AP"] <= summary["AP50"] < 1


@pytest.mark.parametrize("limit", [100, 120])
def test_max_detections_equals_pycocotools(root, limit):
    dataset, detections = crowd_image(root)
    result = CocoEvaluator(dataset, limit)
    for i in range(5):
        result.add([detections[i]], [dataset[i][1]])
    summary = result.summarize()
    evaluation = result._evaluate(sorted(result.results, key=lambda each: each.image_id))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    expected = [float("nan") if value < 0 else value for value in evaluation.stats]
    first = 0 if limit == 100 else 1  # pycocotools computes AP, the first, for 100 detections only
    assert [*summary.values()][first:] == pytest.approx(expected[first:], abs=1e-12, nan_ok=True)


def test_objects_per_image_leave_out_crowds_and_empty_boxes(root):
    assert build_dataset(coco_config(root), "val").num_objects == [2, 1, 0, 1, 1]


@pytest.mark.parametrize("label", [2, 8, 90], ids=["gap", "beyond", "far beyond"])
def test_labels_without_category_are_ignored(root, label):
    dataset = build_dataset(coco_config(root), "val")
    plain, with_extra = evaluator(dataset, range(5)), CocoEvaluator(dataset)
    for i in range(5):
        detections = predictions(dataset, i, 1.0)
        extra = {"scores": torch.ones(1), "labels": torch.tensor([label]), "boxes": torch.tensor([[0.0, 0, 5, 5]])}
        with_extra.add([{k: torch.cat([extra[k], detections[k]]) for k in detections}], [dataset[i][1]])
    assert with_extra.results == plain.results


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_results_of_several_ranks_are_exact(root, world_size):
    dataset = build_dataset(coco_config(root), "val")
    parts = [[i for batch in val_batch_indices(5, 2, rank, world_size) for i in batch] for rank in range(world_size)]
    results = [result for part in parts for result in evaluator(dataset, part).results]
    single = evaluator(dataset, range(5))
    assert single.summarize(results) == pytest.approx(single.summarize(), abs=0, nan_ok=True)
    with pytest.raises(ValueError, match="1 missing, 0 duplicate"):
        single.summarize(results[1:])
    with pytest.raises(ValueError, match="0 missing, 1 duplicate"):
        single.summarize([*results, results[0]])


def test_area_thresholds_come_from_the_annotation_file(root):
    assert build_dataset(coco_config(root), "val").area_thresholds == (32.0**2, 96.0**2)
    before = evaluator(build_dataset(coco_config(root), "val"), range(5), noise=0.0).summarize()
    assert math.isnan(before["AP_L"])
    edit(root, lambda content: content.update(info={"area_thresholds": [120, 250]}))
    after = evaluator(build_dataset(coco_config(root), "val"), range(5), noise=0.0).summarize()
    assert not math.isnan(after["AP_S"] + after["AP_M"])
    # Two classes have large objects: the bee is found; the ant, which reaches over the border, is not when clamped.
    assert after["AP_L"] == pytest.approx(0.5)
