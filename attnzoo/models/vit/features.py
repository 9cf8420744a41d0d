"""A hierarchical ViT as the backbone of a detector."""

from collections.abc import Sequence

from einops import rearrange
from timm.models import FeatureInfo
from torch import Tensor, nn

from attnzoo.errors import UserError
from attnzoo.models.precision import match_precision
from attnzoo.models.vit.config import VitConfig
from attnzoo.models.vit.trunk import Trunk


class Features(nn.Module):
    """Images (B, 3, H, W) to the maps (B, Cᵢ, h, w) of the selected stages, each followed by its own LayerNorm.

    The LayerNorms follow the published Swin and DAT detectors. `out_indices` are 0-based stage indices in
    ascending order; None selects all stages. `feature_info` describes them like timm's, with module names relative to
    `trunk`. `where` is the config key of the settings. Raises UserError for an invalid stage.
    """

    def __init__(self, config: VitConfig, out_indices: Sequence[int] | None = None, where: str = "model"):
        super().__init__()
        self.trunk = Trunk(config, where)
        all_stages = self.trunk.feature_info
        stages = range(len(all_stages.channels()))
        self.out_indices = tuple(stages if out_indices is None else out_indices)
        if not self.out_indices or list(self.out_indices) != [stage for stage in stages if stage in self.out_indices]:
            raise UserError(
                f"{where}: stages {list(self.out_indices)}: expected some of {list(stages)}, ascending", key=where
            )
        self.feature_info: FeatureInfo = all_stages.from_other(self.out_indices)
        del self.trunk.stages[self.out_indices[-1] + 1 :]  # unused
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in self.feature_info.channels())

    def forward(self, images: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """`mask` (B, H, W) is True where images are padded."""
        feature_maps = self.trunk(match_precision(images, next(self.trunk.parameters())), mask)
        selected = zip(self.out_indices, self.norms, strict=True)
        return [rearrange(norm(feature_maps[stage]), "b h w c -> b c h w") for stage, norm in selected]
