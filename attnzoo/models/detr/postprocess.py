"""From a detector's output to detections in pixels of the original images."""

import torch
from torch import Tensor

from attnzoo.models.detr.boxes import cxcywh_to_xyxy
from attnzoo.models.detr.output import DetectorOutput


@torch.no_grad()
def postprocess(output: DetectorOutput, sizes: Tensor, classification: str, top: int = 100) -> list[dict[str, Tensor]]:
    """At most `top` detections per image, best first, from the last decoder layer; no suppression of overlaps.

    `sizes` (B, 2) are the original heights and widths in pixels. Cross-entropy gives each query its best
    class other than "no object"; focal takes the best pairs of query and class, so that a query can answer
    several times. Per image: "scores" (n,) in [0, 1], "labels" (n,) and "boxes" (n, 4) as (x1, y1, x2, y2)
    in pixels, not clipped to the image.
    """
    logits = output.logits[-1].float()
    if classification == "cross_entropy":
        best, labels = logits.softmax(-1)[..., :-1].max(-1)
        scores, queries = best.topk(min(top, best.shape[1]), sorted=True)
        labels = labels.gather(1, queries)
    else:
        pairs = logits.sigmoid().flatten(1)
        scores, index = pairs.topk(min(top, pairs.shape[1]), sorted=True)
        queries, labels = index // logits.shape[-1], index % logits.shape[-1]
    height, width = sizes.to(output.boxes.device).unbind(1)
    scale = torch.stack([width, height, width, height], 1)
    boxes = cxcywh_to_xyxy(output.boxes[-1].float()).gather(1, queries[..., None].expand(-1, -1, 4)) * scale[:, None]
    return [{"scores": s, "labels": c, "boxes": b} for s, c, b in zip(scores, labels, boxes, strict=True)]
