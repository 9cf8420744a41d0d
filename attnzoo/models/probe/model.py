"""The model of probes: linear embedding, one attention with residual and norm, head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo.attention import build_block
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot
from attnzoo.models.position import sine_embedding
from attnzoo.models.probe.config import ProbeConfig

# The sizes of attnzoo.data.probes, which a test compares.
CHANNELS, CONTENT, QUERIES = 16, 8, 32


class ProbeModel(nn.Module):
    """Scores of queries that attend to a map once.

    In the decoder, a query is the embedding of its content at the position of its reference. In the encoder and in a
    stage, the content is added to the token of the map at the reference, and the query's output is that of the token.

    Raises UserError for an attention that does not support the role, and for more than one level in a stage.
    """

    def __init__(self, config: ProbeConfig, num_classes: int):
        super().__init__()
        self.config, self.num_classes = config, num_classes
        role = Role(config.role)
        if role == Role.STAGE and config.levels > 1:
            raise UserError(f"model.levels = {config.levels}: a stage has one level", key="model.levels")
        if config.dim % config.heads:
            message = f"model.heads = {config.heads}: must divide model.dim = {config.dim}"
            raise UserError(message, key=("model.heads", "model.dim"))
        if config.dim % 4:
            raise UserError(f"model.dim = {config.dim}: must be divisible by 4", key="model.dim")
        slot = Slot(config.dim, config.heads, config.levels, role)
        self.embedding = nn.Linear(CHANNELS, config.dim)
        self.content = nn.Linear(CONTENT, config.dim)
        self.level_embedding = nn.Parameter(nn.init.normal_(torch.empty(config.levels, config.dim)))
        self.attention = build_block(config.attention, slot, where="model.attention")
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Sequential(
            nn.Linear(config.dim, config.hidden), nn.ReLU(), nn.Linear(config.hidden, num_classes)
        )

    def forward(self, maps: Tensor, references: Tensor, content: Tensor) -> Tensor:
        """Scores (B, Q, num_classes) from maps (B, 16, h, w), references (B, Q, 2) and content (B, Q, 8)."""
        memory = self._pyramid(maps)
        asked = self.content(content)
        if self.config.role == Role.DECODER:
            queries = Queries(asked, references, self._position(references))
            return self.head(self.norm(asked + self.attention(queries, memory)))
        h, w = maps.shape[-2:]
        x, y = (references * references.new_tensor([w, h])).long().unbind(-1)
        index = (y * w + x)[..., None].expand(-1, -1, self.config.dim)
        memory = Pyramid(memory.tokens.scatter_add(1, index, asked), memory.layout, memory.pos)
        tokens = memory.tokens + self.attention(memory.as_queries(), memory)
        return self.head(self.norm(tokens.gather(1, index)))

    def _pyramid(self, maps: Tensor) -> Pyramid:
        levels = [F.avg_pool2d(maps, 2**level, ceil_mode=True) for level in range(self.config.levels)]
        layout = Layout.unpadded([(level.shape[-2], level.shape[-1]) for level in levels], len(maps), maps.device)
        tokens = torch.cat([self.embedding(level.flatten(2).transpose(1, 2)) for level in levels], 1)
        counts = torch.tensor(layout.tokens_per_level, device=maps.device)
        of_level = self.level_embedding.repeat_interleave(counts, 0, output_size=layout.num_tokens)
        return Pyramid(tokens, layout, self._position(layout.centers) + of_level)

    def _position(self, points: Tensor) -> Tensor:
        """Position embeddings (B, N, dim) of points (B, N, 2): of y, then of x."""
        return sine_embedding(points.flip(-1), self.config.dim // 2).flatten(-2)


def random_inputs(
    batch_size: int, size: tuple[int, int], device: torch.device | str, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Random inputs of the model, 32 queries for each map of `size` (h, w)."""
    maps = torch.randn(batch_size, CHANNELS, *size, generator=generator)
    references = torch.rand(batch_size, QUERIES, 2, generator=generator)
    content = torch.randn(batch_size, QUERIES, CONTENT, generator=generator)
    return maps.to(device), references.to(device), content.to(device)
