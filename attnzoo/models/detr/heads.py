"""Classification and box heads, and their initialisation."""

import copy
import math
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo.attention.base import linear_fp32
from attnzoo.models.detr.config import HeadConfig

HeadT = TypeVar("HeadT", bound=nn.Module)


class BoxHead(nn.Module):
    """Three-layer MLP from hidden states (..., dim) to box logits (..., 4).

    In float32 or higher, also under autocast and with half-precision input, because its output becomes coordinates.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, 4)])

    @property
    def last_layer(self) -> nn.Linear:
        return cast(nn.Linear, self.layers[-1])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(linear_fp32(cast(nn.Linear, layer), x))
        return linear_fp32(self.last_layer, x)


class PredictionHeads(nn.Module):
    """A class head and a box head per decoder layer, and a separate pair for encoder proposals.

    `num_logits` is the output size of class heads. `config.shared` shares a pair over the decoder layers; null shares
    it unless boxes are refined.
    """

    def __init__(self, config: HeadConfig, dim: int, num_logits: int, num_layers: int):
        super().__init__()
        shared = not config.refine if config.shared is None else config.shared
        self.classes = nn.ModuleList(_clone(_class_head(dim, num_logits, config.class_prior), num_layers, shared))
        boxes = _clone(_box_head(dim, config.box_size_bias), num_layers, shared)
        self.boxes = nn.ModuleList(boxes)
        self.encoder_class = _class_head(dim, num_logits, config.class_prior) if config.two_stage else None
        self.encoder_box = _box_head(dim, config.box_size_bias) if config.two_stage else None
        if config.box_size_bias is not None:
            # Zero size bias where references are boxes: proposals in all layers, refined boxes from the second layer on
            # (Deformable DETR, DeformableDETR.__init__).
            if self.encoder_box is not None:
                zero_bias = [*boxes, self.encoder_box]
            else:
                zero_bias = boxes[1:] if config.refine and not shared else []
            for head in zero_bias:
                nn.init.zeros_(head.last_layer.bias)


def _clone(head: HeadT, num_layers: int, shared: bool) -> list[HeadT]:
    """One head per layer, with the same initial weights as in the published code; the same head if `shared`."""
    if shared:
        return [head] * num_layers
    return [head, *(copy.deepcopy(head) for _ in range(num_layers - 1))]


def _class_head(dim: int, num_logits: int, prior: float | None) -> nn.Linear:
    head = nn.Linear(dim, num_logits)
    if prior is not None:
        nn.init.constant_(head.bias, -math.log((1 - prior) / prior))
    return head


def _box_head(dim: int, size_bias: float | None) -> BoxHead:
    head = BoxHead(dim)
    if size_bias is not None:
        nn.init.zeros_(head.last_layer.weight)
        with torch.no_grad():
            head.last_layer.bias.copy_(torch.tensor([0.0, 0.0, size_bias, size_bias]))
    return head
