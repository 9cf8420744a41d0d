"""Which prediction answers which object: the bipartite matching of DETR (Carion et al. 2020, section 3.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from attnzoo.models.detr.boxes import pairwise_giou
from attnzoo.models.detr.config import LossConfig

Target = Mapping[str, Tensor]
"""Target of one image: "labels" (n,) int64 and "boxes" (n, 4) as (cx, cy, w, h), normalised, with area."""

FIRST = -1e6  # lower than any finite cost


@dataclass(frozen=True, eq=False)
class Matching:
    """The K pairs of each layer; K = Σ min(n, Q) over the images, the same for all layers.

    - `images`: (K,) int64, ascending
    - `queries`: (layers, K) int64, ascending within an image
    - `targets`: (layers, K) int64, index into the objects of all images one after the other
    """

    images: Tensor
    queries: Tensor
    targets: Tensor


@torch.no_grad()
def hungarian_match(logits: Tensor, boxes: Tensor, targets: Sequence[Target], config: LossConfig) -> Matching:
    """The cheapest one-to-one matching per layer and image, of logits (layers, B, Q, C) and boxes (layers, B, Q, 4).

    The cost of a pair is match_class · class + match_l1 · L1 + match_giou · (-GIoU). A prediction that is
    not finite is matched first, so that it reaches the loss and the run stops there, with the step named,
    instead of inside the solver. There is one copy from the device and one back, whatever the number of layers.
    """
    layers = logits.shape[0]
    counts = [len(target["labels"]) for target in targets]
    starts = np.cumsum([0, *counts])
    labels = pad_sequence([target["labels"] for target in targets], batch_first=True)
    references = pad_sequence([target["boxes"].to(boxes.dtype) for target in targets], batch_first=True)

    cost = config.match_class * class_cost(logits, labels, config)
    cost = cost + config.match_l1 * torch.cdist(boxes, references.expand(layers, -1, -1, -1), p=1)
    cost = cost - config.match_giou * pairwise_giou(boxes, references)
    costs = torch.where(cost.isfinite(), cost, FIRST).cpu().numpy()

    pairs = [[linear_sum_assignment(c[:, :n]) for c, n in zip(layer, counts, strict=True)] for layer in costs]
    images = np.repeat(np.arange(len(counts)), [len(queries) for queries, _ in pairs[0]])
    queries = [np.concatenate([q for q, _ in layer]) for layer in pairs]
    found = [np.concatenate([t + start for (_, t), start in zip(layer, starts[:-1], strict=True)]) for layer in pairs]
    table = torch.from_numpy(np.stack([images, *queries, *found])).to(logits.device, torch.int64)
    return Matching(table[0], table[1 : 1 + layers], table[1 + layers :])


def class_cost(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """Cost (layers, B, Q, N) of answering labels (B, N) with logits (layers, B, Q, C).

    Cross-entropy: minus the probability (DETR). Focal: the focal loss of the class being there minus that
    of it not being there (Deformable DETR).
    """
    index = labels[None, :, None].expand(*logits.shape[:3], -1)
    if config.classification == "cross_entropy":
        return -logits.softmax(-1).gather(-1, index)
    p = logits.gather(-1, index).sigmoid()
    alpha, gamma, eps = config.focal_alpha, config.focal_gamma, 1e-8
    there = alpha * (1 - p) ** gamma * -(p + eps).log()
    absent = (1 - alpha) * p**gamma * -(1 - p + eps).log()
    return there - absent
