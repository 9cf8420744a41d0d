"""The detector all presets are: backbone, neck, encoder, queries, decoder, heads."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from attnzoo import attention
from attnzoo.attention import Attention
from attnzoo.errors import UserError
from attnzoo.geometry import Pyramid, Queries, Role, Slot
from attnzoo.models.backbone import Backbone
from attnzoo.models.detr.boxes import inverse_sigmoid
from attnzoo.models.detr.config import DetectorConfig
from attnzoo.models.detr.heads import Heads
from attnzoo.models.detr.output import DetectorOutput
from attnzoo.models.detr.queries import LARGEST_PROPOSAL, LearnedQueries, ProposedQueries
from attnzoo.models.detr.transformer import DecoderLayer, EncoderLayer
from attnzoo.models.neck import Neck
from attnzoo.schema.fields import NamedBlock


class Detector(nn.Module):
    """DETR, Deformable DETR and everything between, as `config` says.

    `num_classes` does not count "no object", for which cross-entropy adds a last logit.
    Raises UserError, naming the key, for a combination that cannot work.
    """

    def __init__(self, config: DetectorConfig, num_classes: int):
        super().__init__()
        _check(config)
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
        classes = num_classes + (config.loss.classification == "cross_entropy")
        self.heads = Heads(config.head, config.dim, classes, config.decoder.layers)
        self.queries: LearnedQueries | ProposedQueries
        if config.head.two_stage:
            _check_anchors(config, self.neck.levels)
            self.queries = ProposedQueries(config.head, config.queries, config.dim, num_classes)
        else:
            kind = attention.ATTENTIONS.get(config.decoder.attention["name"])
            refs = Role.DECODER in kind.needs_reference_points or config.head.boxes == "relative"
            self.queries = LearnedQueries(config.queries, config.dim, config.decoder.learned_content, refs)

    def _attention(self, role: Role, block: NamedBlock, layer: int) -> Attention:
        slot = Slot(self.config.dim, self.config.heads, self.neck.levels, role, layer)
        where = f"model.{role}.attention"
        name, options = attention.ATTENTIONS.read_block(block, where)
        return attention.build(name, slot, where=where, **options)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> DetectorOutput:
        """Detect in images (B, 3, H, W) with padding mask (B, H, W), True where padded."""
        return self.detect(self.neck(self.backbone(images, mask), mask))

    def detect(self, memory: Pyramid) -> DetectorOutput:
        """Detect from a pyramid of projected features."""
        for layer in self.encoder:
            memory = layer(memory)
        if isinstance(self.queries, ProposedQueries):
            queries, encoder_logits, encoder_boxes = self.queries(memory, self.heads)
            return self._decode(queries, memory, encoder_logits, encoder_boxes)
        return self._decode(self.queries(len(memory.tokens)), memory, None, None)

    def _decode(
        self, queries: Queries, memory: Pyramid, encoder_logits: Tensor | None, encoder_boxes: Tensor | None
    ) -> DetectorOutput:
        logits, boxes = [], []
        for layer, class_head, box_head in zip(self.decoder, self.heads.classes, self.heads.boxes, strict=True):
            queries = layer(queries, memory)
            state = queries.tokens if self.decoder_norm is None else self.decoder_norm(queries.tokens)
            box = self._box(box_head(state), queries.reference_points)
            logits.append(class_head(state))
            boxes.append(box)
            if self.config.head.refine:
                queries = replace(queries, reference_points=box.detach())
        return DetectorOutput(torch.stack(logits), torch.stack(boxes), encoder_logits, encoder_boxes)

    def _box(self, delta: Tensor, refs: Tensor | None) -> Tensor:
        """Boxes (B, Q, 4) in [0, 1] from the head's output and the references of the layer."""
        if self.config.head.boxes == "absolute":
            return delta.sigmoid()
        assert refs is not None
        start = inverse_sigmoid(refs)
        if start.shape[-1] == 2:
            return torch.cat([delta[..., :2] + start, delta[..., 2:]], -1).sigmoid()
        return (delta + start).sigmoid()


def _check(config: DetectorConfig) -> None:
    """Refuse combinations that no part of the model could refuse alone."""
    if config.dim % config.heads:
        raise UserError(f"model.heads = {config.heads}: must divide model.dim = {config.dim}")
    if config.head.refine and config.head.boxes == "absolute":
        raise UserError("model.head.refine refines boxes relative to references: it needs model.head.boxes = relative")


def _check_anchors(config: DetectorConfig, levels: int) -> None:
    """Refuse proposals larger than the image: a whole level would silently propose nothing."""
    coarsest = config.head.anchor_size * 2 ** (levels - 1)
    if coarsest >= LARGEST_PROPOSAL:
        raise UserError(
            f"model.head.anchor_size = {config.head.anchor_size}: doubled per level it is {coarsest:g} of the image on "
            f"the last of {levels} levels, and must stay below {LARGEST_PROPOSAL}"
        )
