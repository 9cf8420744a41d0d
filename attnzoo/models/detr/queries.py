"""Where object queries come from: learned, or the encoder's best proposals."""

import torch
from torch import Tensor, nn

from attnzoo.attention.base import linear_fp32
from attnzoo.errors import UserError
from attnzoo.geometry import Pyramid, Queries
from attnzoo.models.detr.config import HeadConfig
from attnzoo.models.detr.heads import Heads
from attnzoo.models.position import sine

# Of the image: proposals whose centre or size lies beyond are not used (Deformable DETR, gen_encoder_output_proposals).
SMALLEST_PROPOSAL, LARGEST_PROPOSAL = 0.01, 0.99


class LearnedQueries(nn.Module):
    """`count` learned queries: a position each, a content if `content` (zeros otherwise), references if `refs`.

    References (B, Q, 2) are a linear map of the position (Deformable DETR, section 4.1).
    """

    def __init__(self, count: int, dim: int, content: bool, refs: bool):
        super().__init__()
        self.embedding = nn.Embedding(count, 2 * dim if content else dim)
        self.content = content
        self.reference_points = nn.Linear(dim, 2) if refs else None
        if self.reference_points is not None:
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)

    def forward(self, batch: int) -> Queries:
        """Queries (B, Q, C)."""
        table = self.embedding.weight[None].expand(batch, -1, -1)
        pos, tokens = table.chunk(2, -1) if self.content else (table, torch.zeros_like(table))
        refs = None
        if self.reference_points is not None:
            refs = linear_fp32(self.reference_points, pos).sigmoid()
        return Queries(tokens, refs, pos)


class ProposedQueries(nn.Module):
    """Two-stage: every token of the memory proposes a box, the best `count` become queries.

    A proposal is a box at the token's centre, `anchor_size` · 2^level wide and high, refined by the
    encoder's box head. Position and content of a query are a linear map of the sine embedding of its box;
    with `content` = "memory" the content is the token itself (Deformable DETR, appendix A.4).
    """

    def __init__(self, config: HeadConfig, count: int, dim: int, objects: int):
        super().__init__()
        self.config, self.count, self.dim = config, count, dim
        self.objects = objects  # logits that stand for objects: all but "no object"
        self.output = nn.Linear(dim, dim)
        self.output_norm = nn.LayerNorm(dim)
        width = 2 * dim if config.content == "position" else dim
        self.position = nn.Linear(2 * dim, width)
        self.position_norm = nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.xavier_uniform_(self.position.weight)

    def forward(self, memory: Pyramid, heads: Heads) -> tuple[Queries, Tensor, Tensor]:
        """Queries (B, Q, C), and the logits (B, S, classes) and boxes (B, S, 4) of all proposals.

        Raises UserError if there are more queries than tokens.
        """
        if self.count > memory.layout.num_tokens:
            raise UserError(
                f"model.queries = {self.count}: the memory has only {memory.layout.num_tokens} tokens to propose them"
            )
        assert heads.encoder_class is not None
        assert heads.encoder_box is not None
        proposals, usable = self._proposals(memory)
        features = self.output_norm(self.output(memory.tokens.masked_fill(~usable, 0)))
        logits = heads.encoder_class(features)
        box_logits = heads.encoder_box(features) + proposals
        # Class 0 is "object" in the published encoder loss; "best" goes with real labels there.
        score = self._scores(logits)
        score = score[..., 0] if self.config.select == "first" else score.amax(-1)
        chosen = score.topk(self.count, 1).indices[..., None]
        refs = box_logits.gather(1, chosen.expand(-1, -1, 4)).detach().sigmoid()
        embedded = sine(refs, self.dim // 2).flatten(2).to(features.dtype)
        pos = self.position_norm(self.position(embedded))
        if self.config.content == "position":
            pos, tokens = pos.chunk(2, -1)
        else:
            tokens = features.gather(1, chosen.expand(-1, -1, self.dim)).detach()
        return Queries(tokens, refs, pos), logits, box_logits.sigmoid()

    def _scores(self, logits: Tensor) -> Tensor:
        """What ranks proposals, (B, S, objects).

        Logits rank as their sigmoids do, but not as a softmax, which a constant added to all of them leaves alone.
        """
        return logits if logits.shape[-1] == self.objects else logits.softmax(-1)[..., : self.objects]

    def _proposals(self, memory: Pyramid) -> tuple[Tensor, Tensor]:
        """Box logits (B, S, 4), and which are usable (B, S, 1).

        Where a token is padding or its box leaves the image they are infinite.
        """
        centers = memory.layout.centers
        sizes = torch.cat(
            [
                centers.new_full((length, 2), self.config.anchor_size * 2**level)
                for level, length in enumerate(memory.layout.tokens_per_level)
            ]
        )
        boxes = torch.cat([centers, sizes.expand_as(centers)], -1)
        usable = ((boxes > SMALLEST_PROPOSAL) & (boxes < LARGEST_PROPOSAL)).all(-1, keepdim=True)
        if memory.layout.padding_mask is not None:
            usable = usable & ~memory.layout.padding_mask[..., None]
        return torch.log(boxes / (1 - boxes)).masked_fill(~usable, torch.inf), usable
