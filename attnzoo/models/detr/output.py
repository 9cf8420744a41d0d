"""What a detector returns."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DetectorOutput:
    """Predictions of all decoder layers, and of the encoder in two-stage detectors.

    - `logits`: (layers, B, Q, classes), the last layer last; with cross-entropy the last class is "no object"
    - `boxes`: (layers, B, Q, 4) as (cx, cy, w, h), normalised to the valid image, each in [0, 1]
    - `encoder_logits`: (B, S, classes), one proposal per token of the pyramid
    - `encoder_boxes`: (B, S, 4), as `boxes`
    """

    logits: Tensor
    boxes: Tensor
    encoder_logits: Tensor | None = None
    encoder_boxes: Tensor | None = None


torch.export.register_dataclass(DetectorOutput)
