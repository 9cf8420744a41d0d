"""Bipartite (Hungarian) matching of predictions and ground truth (DETR, Carion et al. 2020, section 3.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attnzoo.models.detr.boxes import pairwise_giou
from attnzoo.models.detr.config import LossConfig

Target = Mapping[str, Tensor]
"""Ground truth of one image: "labels" (n,) int64 and "boxes" (n, 4) as normalised (cx, cy, w, h) of positive size."""

NONFINITE_COST = -1e6  # below any finite cost


@dataclass(frozen=True, eq=False)
class Matching:
    """The K matched pairs of each layer; K = Σ min(n, Q) over the images, the same for all layers.

    - `images`: (K,) int64, ascending
    - `queries`: (layers, K) int64, ascending within an image
    - `targets`: (layers, K) int64, indices into the concatenated targets of all images
    """

    images: Tensor
    queries: Tensor
    targets: Tensor


@torch.no_grad()
def hungarian_match(logits: Tensor, boxes: Tensor, targets: Sequence[Target], config: LossConfig) -> Matching:
    """The one-to-one matching of lowest cost, per layer and image.

    `logits` are (layers, B, Q, C), `boxes` (layers, B, Q, 4). The cost of a pair is
    match_class · class + match_l1 · L1 + match_giou · (-GIoU). Non-finite predictions get `NONFINITE_COST` and are
    matched first, so that the loss becomes non-finite instead of linear_sum_assignment failing. Data is copied from and
    to the device once, whatever the number of layers.
    """
    layers = logits.shape[0]
    num_targets = [len(target["labels"]) for target in targets]
    offsets = np.cumsum([0, *num_targets])
    # (B, N) indices into the concatenated targets; beyond an image's own they are of others, and are cut off below
    padded = offsets[:-1, None] + np.arange(max(num_targets))
    index = torch.from_numpy(padded.clip(max=max(offsets[-1] - 1, 0))).to(logits.device)
    labels = torch.cat([target["labels"] for target in targets])[index]
    target_boxes = torch.cat([target["boxes"] for target in targets]).to(boxes.dtype)[index]

    cost = config.match_class * class_cost(logits, labels, config)
    cost = cost + config.match_l1 * torch.cdist(boxes, target_boxes.expand(layers, -1, -1, -1), p=1)
    cost = cost - config.match_giou * pairwise_giou(boxes, target_boxes)
    costs = torch.where(cost.isfinite(), cost, NONFINITE_COST).cpu().numpy()

    pairs = [[linear_sum_assignment(c[:, :n]) for c, n in zip(layer, num_targets, strict=True)] for layer in costs]
    images = np.repeat(np.arange(len(targets)), [len(query) for query, _ in pairs[0]])
    query_indices = [np.concatenate([query for query, _ in layer]) for layer in pairs]
    target_indices = [
        np.concatenate([target + offset for (_, target), offset in zip(layer, offsets[:-1], strict=True)])
        for layer in pairs
    ]
    indices = torch.from_numpy(np.stack([images, *query_indices, *target_indices])).to(logits.device, torch.int64)
    return Matching(indices[0], indices[1 : 1 + layers], indices[1 + layers :])


def class_cost(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """Classification cost (layers, B, Q, N) of logits (layers, B, Q, C) for labels (B, N).

    Cross-entropy: minus the probability of the label (DETR). Focal: positive minus negative focal loss of the label
    (Deformable DETR).
    """
    index = labels[None, :, None].expand(*logits.shape[:3], -1)
    if config.classification == "cross_entropy":
        return -logits.softmax(-1).gather(-1, index)
    p = logits.gather(-1, index).sigmoid()
    alpha, gamma, eps = config.focal_alpha, config.focal_gamma, 1e-8
    pos_cost = alpha * (1 - p) ** gamma * -(p + eps).log()
    neg_cost = (1 - alpha) * p**gamma * -(1 - p + eps).log()
    return pos_cost - neg_cost
