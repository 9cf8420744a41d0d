"""Object queries: learned embeddings, or the top-k proposals of the encoder (two-stage)."""

import torch
from torch import Tensor, nn

from attnzoo.attention.base import linear_fp32
from attnzoo.errors import UserError
from attnzoo.geometry import Pyramid, Queries
from attnzoo.models.detr.config import HeadConfig
from attnzoo.models.detr.heads import PredictionHeads
from attnzoo.models.position import sine_embedding

# Valid range of the coordinates of proposals (Deformable DETR, gen_encoder_output_proposals).
MIN_PROPOSAL, MAX_PROPOSAL = 0.01, 0.99


class LearnedQueries(nn.Module):
    """Learned position embeddings, with learned content if `content` (else zeros) and references if `refs`.

    References are points (B, Q, 2), predicted from the position embedding (Deformable DETR, section 4.1).
    """

    def __init__(self, num_queries: int, dim: int, content: bool, refs: bool):
        super().__init__()
        self.embedding = nn.Embedding(num_queries, 2 * dim if content else dim)
        self.content = content
        self.reference_points = nn.Linear(dim, 2) if refs else None
        if self.reference_points is not None:
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)

    def forward(self, batch_size: int) -> Queries:
        """Queries (B, Q, C)."""
        embedding = self.embedding.weight[None].expand(batch_size, -1, -1)
        pos, tokens = embedding.chunk(2, -1) if self.content else (embedding, torch.zeros_like(embedding))
        refs = None
        if self.reference_points is not None:
            refs = linear_fp32(self.reference_points, pos).sigmoid()
        return Queries(tokens, refs, pos)


class TwoStageQueries(nn.Module):
    """Two-stage: each encoder token proposes a box, and the top `num_queries` proposals become queries.

    A proposal is a box at the token's centre with width and height `anchor_size` · 2^level, refined by the encoder's
    box head. Position embedding and content of a query are projected from the sine embedding of its box; with
    `content` = "memory" the content is the token itself (Deformable DETR, appendix A.4).
    """

    def __init__(self, config: HeadConfig, num_queries: int, dim: int, num_classes: int):
        super().__init__()
        self.config, self.num_queries, self.dim, self.num_classes = config, num_queries, dim, num_classes
        self.output = nn.Linear(dim, dim)
        self.output_norm = nn.LayerNorm(dim)
        width = 2 * dim if config.content == "position" else dim
        self.position = nn.Linear(2 * dim, width)
        self.position_norm = nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.xavier_uniform_(self.position.weight)

    def forward(self, memory: Pyramid, heads: PredictionHeads) -> tuple[Queries, Tensor, Tensor]:
        """Queries (B, Q, C), and the logits (B, S, num_logits) and boxes (B, S, 4) of all proposals.

        Raises UserError if there are more queries than tokens.
        """
        if self.num_queries > memory.layout.num_tokens:
            raise UserError(
                f"model.queries = {self.num_queries}: exceeds the {memory.layout.num_tokens} encoder tokens",
                key="model.queries",
            )
        assert heads.encoder_class is not None
        assert heads.encoder_box is not None
        proposals, valid = self._proposals(memory)
        features = self.output_norm(self.output(memory.tokens.masked_fill(~valid, 0)))
        logits = heads.encoder_class(features)
        box_logits = heads.encoder_box(features) + proposals
        topk = self._ranking_scores(logits).topk(self.num_queries, 1).indices[..., None]
        refs = box_logits.gather(1, topk.expand(-1, -1, 4)).detach().sigmoid()
        proposal_embed = sine_embedding(refs, self.dim // 2).flatten(2).to(features.dtype)
        pos = self.position_norm(self.position(proposal_embed))
        if self.config.content == "position":
            pos, tokens = pos.chunk(2, -1)
        else:
            tokens = features.gather(1, topk.expand(-1, -1, self.dim)).detach()
        return Queries(tokens, refs, pos), logits, box_logits.sigmoid()

    def _ranking_scores(self, logits: Tensor) -> Tensor:
        """Scores (B, S) by which proposals are selected, see HeadConfig.select."""
        # Sigmoid is monotonic, so logits give the same ranking; softmax over classes does not.
        scores = logits if logits.shape[-1] == self.num_classes else logits.softmax(-1)[..., : self.num_classes]
        return scores[..., 0] if self.config.select == "class_agnostic" else scores.amax(-1)

    def _proposals(self, memory: Pyramid) -> tuple[Tensor, Tensor]:
        """Box logits (B, S, 4) and validity (B, S, 1). Logits of padded and out-of-image proposals are infinite."""
        centers = memory.layout.centers
        sizes = torch.cat(
            [
                centers.new_full((length, 2), self.config.anchor_size * 2**level)
                for level, length in enumerate(memory.layout.tokens_per_level)
            ]
        )
        boxes = torch.cat([centers, sizes.expand_as(centers)], -1)
        valid = ((boxes > MIN_PROPOSAL) & (boxes < MAX_PROPOSAL)).all(-1, keepdim=True)
        if memory.layout.padding_mask is not None:
            valid = valid & ~memory.layout.padding_mask[..., None]
        return torch.log(boxes / (1 - boxes)).masked_fill(~valid, torch.inf), valid
