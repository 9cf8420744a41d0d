"""From a detector's output to detections in pixels of the original images."""

import torch
from torch import Tensor

from attnzoo.models.detr.boxes import cxcywh_to_xyxy
from attnzoo.models.detr.output import DetectorOutput


@torch.no_grad()
def postprocess(
    output: DetectorOutput, sizes: Tensor, classification: str, max_detections: int = 100
) -> list[dict[str, Tensor]]:
    """`top_detections` per image: "scores" (n,), "labels" (n,) and "boxes" (n, 4)."""
    detections = top_detections(output, sizes, classification, max_detections)
    return [{"scores": s, "labels": c, "boxes": b} for s, c, b in zip(*detections, strict=True)]


def top_detections(
    output: DetectorOutput, sizes: Tensor, classification: str, max_detections: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """Detections of the last decoder layer with the highest scores, sorted by score; no NMS.

    `sizes` (B, 2) are the original heights and widths in pixels. Cross-entropy gives each query its best class other
    than "no object". Focal takes the top (query, class) pairs, so a query may give several detections. Returns scores
    (B, n) in [0, 1], labels (B, n) and boxes (B, n, 4) as (x1, y1, x2, y2) in pixels, not clipped to the image.
    """
    logits = output.logits[-1].float()
    if classification == "cross_entropy":
        query_scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        scores, queries = query_scores.topk(min(max_detections, query_scores.shape[1]), sorted=True)
        labels = labels.gather(1, queries)
    else:
        pair_scores = logits.sigmoid().flatten(1)
        scores, index = pair_scores.topk(min(max_detections, pair_scores.shape[1]), sorted=True)
        queries, labels = index // logits.shape[-1], index % logits.shape[-1]
    height, width = sizes.to(output.boxes.device).unbind(1)
    scale = torch.stack([width, height, width, height], 1)
    boxes = cxcywh_to_xyxy(output.boxes[-1].float()).gather(1, queries[..., None].expand(-1, -1, 4)) * scale[:, None]
    return scores, labels, boxes
