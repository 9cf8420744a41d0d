"""What reads classes and boxes from decoder states, and their initialisation."""

import copy
import math
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo.attention.base import linear_fp32
from attnzoo.models.detr.config import HeadConfig

Head = TypeVar("Head", bound=nn.Module)


class BoxHead(nn.Module):
    """Three linear layers from states (..., dim) to box logits (..., 4), which become coordinates.

    In float32 at least, whatever the type of the states and under autocast too.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, 4)])

    @property
    def last(self) -> nn.Linear:
        return cast(nn.Linear, self.layers[-1])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(linear_fp32(cast(nn.Linear, layer), x))
        return linear_fp32(self.last, x)


class Heads(nn.Module):
    """A class head and a box head per decoder layer, and of their own for encoder proposals.

    `classes` counts logits. Without `shared`, layers have heads of their own; null shares them unless boxes
    are refined. Encoder heads are separate in either case.
    """

    def __init__(self, config: HeadConfig, dim: int, classes: int, layers: int):
        super().__init__()
        shared = not config.refine if config.shared is None else config.shared
        self.classes = nn.ModuleList(_layers(lambda: _class_head(dim, classes, config.class_prior), layers, shared))
        boxes = _layers(lambda: _box_head(dim, config.box_size_bias), layers, shared)
        self.boxes = nn.ModuleList(boxes)
        self.encoder_class = _class_head(dim, classes, config.class_prior) if config.two_stage else None
        self.encoder_box = _box_head(dim, config.box_size_bias) if config.two_stage else None
        if config.box_size_bias is not None:
            # Boxes that start from a reference with a size must not shrink: proposals have one from the
            # beginning, refined boxes from the second layer on (Deformable DETR, DeformableDETR.__init__).
            if self.encoder_box is not None:
                sized = [*boxes, self.encoder_box]
            else:
                sized = boxes[1:] if config.refine and not shared else []
            for head in sized:
                nn.init.zeros_(head.last.bias)


def _layers(make: Callable[[], Head], layers: int, shared: bool) -> list[Head]:
    first = make()
    if shared:
        return [first] * layers
    # Published models start all layers from the same weights.
    return [first, *(copy.deepcopy(first) for _ in range(layers - 1))]


def _class_head(dim: int, classes: int, prior: float | None) -> nn.Linear:
    head = nn.Linear(dim, classes)
    if prior is not None:
        nn.init.constant_(head.bias, -math.log((1 - prior) / prior))
    return head


def _box_head(dim: int, size_bias: float | None) -> BoxHead:
    head = BoxHead(dim)
    if size_bias is not None:
        nn.init.zeros_(head.last.weight)
        with torch.no_grad():
            head.last.bias.copy_(torch.tensor([0.0, 0.0, size_bias, size_bias]))
    return head
