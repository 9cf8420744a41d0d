"""The output of a detector."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DetectorOutput:
    """Predictions of all decoder layers in order and, in two-stage detectors, of the encoder.

    - `logits`: (layers, B, Q, num_logits); with cross-entropy the last logit is "no object"
    - `boxes`: (layers, B, Q, 4) as (cx, cy, w, h) in [0, 1], normalised to the valid image
    - `encoder_logits`: (B, S, num_logits), one proposal per encoder token
    - `encoder_boxes`: (B, S, 4), as `boxes`
    """

    logits: Tensor
    boxes: Tensor
    encoder_logits: Tensor | None = None
    encoder_boxes: Tensor | None = None


torch.export.register_dataclass(DetectorOutput)
