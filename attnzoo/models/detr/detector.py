"""The DETR-style detector of all presets: backbone, neck, encoder, queries, decoder, heads."""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from attnzoo import attention
from attnzoo.attention import Attention
from attnzoo.errors import UserError, plural
from attnzoo.geometry import Pyramid, Queries, Role, Slot
from attnzoo.models.backbone import Backbone
from attnzoo.models.detr.boxes import inverse_sigmoid
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.models.detr.heads import PredictionHeads
from attnzoo.models.detr.output import DetectorOutput
from attnzoo.models.detr.queries import MAX_PROPOSAL, LearnedQueries, TwoStageQueries
from attnzoo.models.detr.transformer import DecoderLayer, EncoderLayer
from attnzoo.models.neck import Neck
from attnzoo.models.precision import match_precision
from attnzoo.models.weights import load_weights
from attnzoo.schema.fields import NamedBlock


class Detector(nn.Module):
    """DETR, Deformable DETR or a combination of their options.

    `num_classes` excludes "no object", for which cross-entropy adds a last logit.
    Raises UserError, naming the key, for an invalid configuration.
    """

    def __init__(self, config: DetectorConfig, num_classes: int):
        super().__init__()
        _check_options(config)
        self.config, self.num_classes = config, num_classes
        self.backbone = Backbone(config.backbone)
        self.neck = Neck(config.neck, self.backbone.channels, config.dim)
        self.encoder = nn.ModuleList(
            EncoderLayer(self._attention(Role.ENCODER, config.encoder.attention, layer), config.ffn, config.dropout)
            for layer in range(config.encoder.layers)
        )
        self.decoder = nn.ModuleList(
            DecoderLayer(
                self._attention(Role.DECODER, config.decoder.attention, layer), config.heads, config.ffn, config.dropout
            )
            for layer in range(config.decoder.layers)
        )
        self.decoder_norm = nn.LayerNorm(config.dim) if config.decoder.norm else None
        num_logits = num_classes + (config.loss.classification == "cross_entropy")
        self.heads = PredictionHeads(config.head, config.dim, num_logits, config.decoder.layers)
        self.queries: LearnedQueries | TwoStageQueries
        if config.head.two_stage:
            _check_anchors(config, self.neck.num_levels)
            self.queries = TwoStageQueries(config.head, config.queries, config.dim, num_classes)
        else:
            layers = [cast(DecoderLayer, layer).cross_attention for layer in self.decoder]
            needed = any(Role.DECODER in layer.needs_reference_points for layer in layers)
            refs = needed or config.head.boxes == "relative"
            self.queries = LearnedQueries(config.queries, config.dim, config.decoder.learned_content, refs)
        if config.weights is not None:
            load_weights(self, config.weights, "model.weights")

    def _attention(self, role: Role, block: NamedBlock, layer: int) -> Attention:
        slot = Slot(self.config.dim, self.config.heads, self.neck.num_levels, role, layer)
        return attention.build_block(block, slot, where=f"model.{role}.attention")

    def forward(self, images: Tensor, mask: Tensor | None = None) -> DetectorOutput:
        """Detections in images (B, 3, H, W) with padding mask (B, H, W), True where padded."""
        images = match_precision(images, next(self.heads.parameters()))
        return self.forward_transformer(self.neck(self.backbone(images, mask), mask))

    def forward_transformer(self, memory: Pyramid) -> DetectorOutput:
        """Detections from the output of the neck."""
        for layer in self.encoder:
            memory = layer(memory)
        if isinstance(self.queries, TwoStageQueries):
            queries, encoder_logits, encoder_boxes = self.queries(memory, self.heads)
            return self._decode(queries, memory, encoder_logits, encoder_boxes)
        return self._decode(self.queries(memory.tokens.shape[0]), memory, None, None)

    def _decode(
        self, queries: Queries, memory: Pyramid, encoder_logits: Tensor | None, encoder_boxes: Tensor | None
    ) -> DetectorOutput:
        logits, boxes = [], []
        reference_logits = self._reference_logits(queries.reference_points)
        for layer, class_head, box_head in zip(self.decoder, self.heads.classes, self.heads.boxes, strict=True):
            queries = layer(queries, memory)
            hidden = queries.tokens if self.decoder_norm is None else self.decoder_norm(queries.tokens)
            box = self._decode_box(box_head(hidden), reference_logits)
            logits.append(class_head(hidden))
            boxes.append(box)
            if self.config.head.refine:
                queries = replace(queries, reference_points=box.detach())
                reference_logits = self._reference_logits(queries.reference_points)
        return DetectorOutput(torch.stack(logits), torch.stack(boxes), encoder_logits, encoder_boxes)

    def _reference_logits(self, refs: Tensor | None) -> Tensor | None:
        """Logits of reference points or boxes (B, Q, 2 or 4), to which the box heads add; None for absolute boxes.

        Layers with the same references share them: torch.onnx.export writes an invalid model if a tensor is clamped
        twice, because onnxscript then gives two constants one name.
        """
        if self.config.head.boxes == "absolute":
            return None
        assert refs is not None
        return inverse_sigmoid(refs)

    def _decode_box(self, delta: Tensor, reference_logits: Tensor | None) -> Tensor:
        """Boxes (B, Q, 4) in [0, 1] from the box head's output and the logits of the layer's references."""
        if reference_logits is None:
            return delta.sigmoid()
        if reference_logits.shape[-1] == 2:
            return torch.cat([delta[..., :2] + reference_logits, delta[..., 2:]], -1).sigmoid()
        return (delta + reference_logits).sigmoid()


def _check_options(config: DetectorConfig) -> None:
    """Check options across submodules."""
    if config.dim % config.heads:
        raise UserError(
            f"model.heads = {config.heads}: must divide model.dim = {config.dim}", key=("model.heads", "model.dim")
        )
    if config.head.refine and config.head.boxes == "absolute":
        raise UserError(
            "model.head.refine = true requires model.head.boxes = 'relative'",
            key=("model.head.refine", "model.head.boxes"),
        )


def _check_anchors(config: DetectorConfig, num_levels: int) -> None:
    """Reject anchors larger than the image: all proposals of their level would be discarded."""
    coarsest = config.head.anchor_size * 2 ** (num_levels - 1)
    if coarsest >= MAX_PROPOSAL:
        raise UserError(
            f"model.head.anchor_size = {config.head.anchor_size}: doubled per level, it is {coarsest:g} of the image "
            f"on the last of {plural(num_levels, 'level')}; must be below {MAX_PROPOSAL}",
            key="model.head.anchor_size",
        )
