"""The trunk of a hierarchical vision transformer: embedding and stages."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attnzoo import attention
from attnzoo.attention import Attention
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Role, Slot
from attnzoo.models.vit.block import Block
from attnzoo.models.vit.config import StageConfig, VitConfig
from attnzoo.models.vit.embedding import EMBEDDINGS, downsampling

STRIDE = 4  # of the first map


class Stage(nn.Module):
    """What halves the map before (nothing in the first stage), then blocks of one width."""

    def __init__(self, downsample: nn.Module | None, blocks: Sequence[Block], checkpointed: bool):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.checkpointed = checkpointed

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """From the map before, (B, h, w, C), to this one; `mask` (B, H, W) of the images is True where padded."""
        if self.downsample is not None:
            x = self.downsample(x)
        batch, height, width = x.shape[:3]
        layout = layout_of(batch, height, width, mask, x.device)
        x = x.flatten(1, 2)
        for block in self.blocks:
            if self.checkpointed and self.training:
                x = checkpoint(block, x, layout, use_reentrant=False)
            else:
                x = block(x, layout)
        if layout.padding_mask is not None:
            x = x.masked_fill(layout.padding_mask[..., None], 0)  # the next stage's convolutions see nothing of it
        return x.unflatten(1, (height, width))


class Trunk(nn.Module):
    """Images (B, 3, H, W) to the maps of the stages, (B, h, w, C) with channels last.

    `feature_info` says, as timm's, what each stage gives: channels, reduction, module name. With a padding mask
    (B, H, W), True where padded, no valid pixel of a map depends on padding, as long as the valid part of the image is
    a multiple of the map's reduction. Raises UserError, naming the key below `where`, for a configuration that cannot
    work.
    """

    def __init__(self, config: VitConfig, where: str = "model"):
        super().__init__()
        stages = _stages(config, where)
        self.patch_embed = EMBEDDINGS[config.embed](stages[0].dim)
        depth = sum(stage.depth for stage in stages)
        drops = iter([config.drop_path * number / max(depth - 1, 1) for number in range(depth)])
        self.stages = nn.ModuleList()
        described = []
        for index, stage in enumerate(stages):
            reduction = STRIDE * 2**index
            side = -(-config.image_size // reduction)
            slot = f"{where}.stage{index + 1}"
            blocks = [
                Block(_attention(stage, number, side, slot), config, next(drops)) for number in range(stage.depth)
            ]
            before = downsampling(config.down, stages[index - 1].dim, stage.dim) if index else None
            self.stages.append(Stage(before, blocks, stage.checkpoint))
            described.append({"num_chs": stage.dim, "reduction": reduction, "module": f"stages.{index}"})
        self.feature_info = FeatureInfo(described, tuple(range(len(described))))

    def forward(self, images: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        x = self.patch_embed(images.permute(0, 2, 3, 1))
        if mask is not None:
            x = x.masked_fill(_at_size(mask, x.shape[1], x.shape[2])[..., None], 0)
        maps = []
        for stage in self.stages:
            x = stage(x, mask)
            maps.append(x)
        return maps


def layout_of(batch: int, height: int, width: int, mask: Tensor | None, device: torch.device) -> Layout:
    """The layout of a map of images with padding `mask` (B, H, W)."""
    if mask is None:
        return Layout.unpadded([(height, width)], batch, device)
    return Layout.from_masks([_at_size(mask, height, width)])


def _at_size(mask: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(mask[:, None].float(), size=(height, width))[:, 0].bool()


def _attention(stage: StageConfig, number: int, side: int, where: str) -> Attention:
    """The attention of block `number` of a stage."""
    which = stage.pattern[number % len(stage.pattern)]
    block, key = (stage.first, "first") if which == 1 else (stage.second, "second")
    slot = Slot(stage.dim, stage.heads, 1, Role.STAGE, number, ((side, side),))
    options = {key: value for key, value in block.items() if key != "name"}
    return attention.build(block["name"], slot, where=f"{where}.{key}", **options)


def _stages(config: VitConfig, where: str) -> list[StageConfig]:
    """The stages that there are."""
    stages = [config.stage1, config.stage2, config.stage3, config.stage4]
    while stages and not stages[-1].depth:
        stages.pop()
    for number, stage in enumerate(stages, start=1):
        if not stage.depth:
            raise UserError(f"{where}.stage{number}.depth = 0: only the last stages can be left out")
        if stage.dim % stage.heads:
            raise UserError(f"{where}.stage{number}.heads = {stage.heads}: must divide dim = {stage.dim}")
        if not stage.pattern:
            raise UserError(f"{where}.stage{number}.pattern: expected at least one of 1 and 2")
    if not stages:
        raise UserError(f"{where}.stage1.depth = 0: a model has at least one block")
    if config.embed == "overlap" and stages[0].dim % 2:
        raise UserError(f"{where}.stage1.dim = {stages[0].dim}: must be even, for embed = 'overlap'")
    return stages
