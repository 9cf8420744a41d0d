"""A hierarchical vision transformer as the backbone of a detector."""

from collections.abc import Sequence

from timm.models import FeatureInfo
from torch import Tensor, nn

from attnzoo.errors import UserError
from attnzoo.models.vit.config import VitConfig
from attnzoo.models.vit.trunk import Trunk


class Features(nn.Module):
    """Images (B, 3, H, W) to the maps (B, Cᵢ, h, w) of chosen stages, each with a LayerNorm of its own.

    The LayerNorms are those of the published Swin and DAT detectors. `chosen` counts stages from 0, ascending; None
    takes all. `feature_info` describes the chosen ones, as timm's does, the modules by their names in `trunk`; `where`
    is what messages call the settings. Raises UserError for a stage that is not there.
    """

    def __init__(self, config: VitConfig, chosen: Sequence[int] | None = None, where: str = "model"):
        super().__init__()
        self.trunk = Trunk(config, where)
        every = self.trunk.feature_info
        stages = range(len(every.channels()))
        self.chosen = tuple(stages if chosen is None else chosen)
        if not self.chosen or list(self.chosen) != [stage for stage in stages if stage in self.chosen]:
            raise UserError(f"{where}: stages {list(self.chosen)}: expected some of {list(stages)}, ascending")
        self.feature_info: FeatureInfo = every.from_other(self.chosen)
        del self.trunk.stages[self.chosen[-1] + 1 :]  # nothing would read them
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in self.feature_info.channels())

    def forward(self, images: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """`mask` (B, H, W) is True where the images are padded."""
        maps = self.trunk(images, mask)
        return [norm(maps[stage]).permute(0, 3, 1, 2) for stage, norm in zip(self.chosen, self.norms, strict=True)]
