"""Postprocessing against the image processors of transformers."""

from types import SimpleNamespace

import pytest
import torch
from support.losses import CLASSES, random_output

from attnzoo.models.detr.output import DetectorOutput
from attnzoo.models.detr.postprocess import postprocess

SIZES = torch.tensor([[480, 640], [333, 500], [1, 1]])


@pytest.mark.parametrize("kind", ["cross_entropy", "focal"])
def test_detections_equal_transformers(kind):
    from transformers import DeformableDetrImageProcessor, DetrImageProcessor

    processor = DetrImageProcessor() if kind == "cross_entropy" else DeformableDetrImageProcessor()
    output = random_output(kind, queries=40)
    last = SimpleNamespace(logits=output.logits[-1].detach(), pred_boxes=output.boxes[-1].detach())
    expected = processor.post_process_object_detection(last, threshold=0.0, target_sizes=SIZES)
    detections = postprocess(output, SIZES, kind)
    assert len(detections) == len(expected) == 3
    for a, b in zip(detections, expected, strict=True):
        order = b["scores"].argsort(descending=True, stable=True)  # transformers does not sort DETR's queries
        for name in ("scores", "labels", "boxes"):
            torch.testing.assert_close(a[name], b[name][order], rtol=1e-6, atol=1e-5)
        assert len(a["scores"]) == (40 if kind == "cross_entropy" else 100)


def test_query_gives_several_detections_with_focal_only():
    """One query has two confident classes, the other none."""
    logits = torch.full((1, 1, 2, CLASSES), -9.0)
    logits[0, 0, 1, 3], logits[0, 0, 1, 2] = 4.0, 2.0
    boxes = torch.tensor([[[[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 0.2]]]])
    output = DetectorOutput(logits, boxes)
    sizes = torch.tensor([[100, 200]])
    (focal,) = postprocess(output, sizes, "focal", max_detections=2)
    assert focal["labels"].tolist() == [3, 2]
    torch.testing.assert_close(focal["scores"], torch.tensor([4.0, 2.0]).sigmoid())
    torch.testing.assert_close(focal["boxes"], torch.tensor([[0.0, 40, 100, 60]]).expand(2, 4))
    (softmax,) = postprocess(output, sizes, "cross_entropy", max_detections=5)  # class 4 is now "no object"
    assert softmax["labels"].tolist()[0] == 3
    assert len(softmax["labels"]) == 2


def test_no_object_is_never_a_label():
    logits = torch.zeros(1, 1, 6, CLASSES + 1)
    logits[..., -1] = 20
    output = DetectorOutput(logits, torch.full((1, 1, 6, 4), 0.5))
    (detections,) = postprocess(output, SIZES[:1], "cross_entropy")
    assert detections["labels"].max() < CLASSES
    assert detections["scores"].max() < 1e-6


def test_detections_are_detached_and_in_fp32():
    output = random_output("focal")
    low = DetectorOutput(output.logits.bfloat16(), output.boxes.bfloat16())
    for detections in postprocess(low, SIZES, "focal"):
        assert detections["boxes"].dtype == detections["scores"].dtype == torch.float32
        assert not detections["scores"].requires_grad
