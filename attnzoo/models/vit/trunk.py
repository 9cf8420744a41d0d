"""The trunk of a hierarchical ViT: patch embedding and stages."""

from collections.abc import Sequence

from einops import rearrange
from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attnzoo import attention
from attnzoo.attention import Attention
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Role, Slot
from attnzoo.models.masks import resize_mask
from attnzoo.models.vit.block import Block
from attnzoo.models.vit.config import StageConfig, VitConfig
from attnzoo.models.vit.embedding import PATCH_EMBEDS, build_downsample
from attnzoo.models.vit.init import reset_to_pytorch_defaults

PATCH_STRIDE = 4


class Stage(nn.Module):
    """Optional downsampling, then blocks of equal width."""

    def __init__(self, downsample: nn.Module | None, blocks: Sequence[Block], grad_checkpointing: bool):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = grad_checkpointing

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The map (B, h, w, C) of this stage from the previous one; `mask` (B, H, W) is the images' padding mask."""
        if self.downsample is not None:
            x = self.downsample(x)
        height, width = x.shape[1:3]
        layout = _layout(x, mask)
        x = rearrange(x, "b h w c -> b (h w) c")
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, layout, use_reentrant=False)
            else:
                x = block(x, layout)
        if layout.padding_mask is not None:
            x = x.masked_fill(layout.padding_mask[..., None], 0)  # so that it does not leak into the next convolution
        return rearrange(x, "b (h w) c -> b h w c", h=height, w=width)


class Trunk(nn.Module):
    """Images (B, 3, H, W) to the maps of all stages, (B, h, w, C) with channels last.

    `feature_info` is the timm FeatureInfo of the stages. With a padding mask (B, H, W), True where padded, valid pixels
    of a map do not depend on padding if the valid size of the image is a multiple of the map's reduction. Raises
    UserError, naming the key below `where`, for an invalid configuration.
    """

    def __init__(self, config: VitConfig, where: str = "model"):
        super().__init__()
        stages = _active_stages(config, where)
        self.patch_embed = PATCH_EMBEDS[config.patch_embed](stages[0].dim)
        depth = sum(stage.depth for stage in stages)
        drop_path_rates = iter([config.drop_path * index / max(depth - 1, 1) for index in range(depth)])
        self.stages = nn.ModuleList()
        feature_info = []
        for index, stage in enumerate(stages):
            reduction = PATCH_STRIDE * 2**index
            map_size = -(-config.image_size // reduction)
            stage_key = f"{where}.stage{index + 1}"
            blocks = [
                Block(_attention(stage, block, map_size, stage_key), config, next(drop_path_rates))
                for block in range(stage.depth)
            ]
            downsample = build_downsample(config.downsample, stages[index - 1].dim, stage.dim) if index else None
            self.stages.append(Stage(downsample, blocks, stage.grad_checkpointing))
            feature_info.append({"num_chs": stage.dim, "reduction": reduction, "module": f"stages.{index}"})
        self.feature_info = FeatureInfo(feature_info, tuple(range(len(feature_info))))
        if config.init == "pytorch":
            reset_to_pytorch_defaults(self)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        x = self.patch_embed(rearrange(images, "b c h w -> b h w c"))
        if mask is not None:
            x = x.masked_fill(resize_mask(mask, x.shape[1], x.shape[2])[..., None], 0)
        feature_maps = []
        for stage in self.stages:
            x = stage(x, mask)
            feature_maps.append(x)
        return feature_maps


def _layout(x: Tensor, mask: Tensor | None) -> Layout:
    """The layout of a map (B, h, w, C) of images with padding mask (B, H, W)."""
    batch_size, height, width = x.shape[:3]
    if mask is None:
        return Layout.unpadded([(height, width)], batch_size, x.device)
    return Layout.from_masks([resize_mask(mask, height, width)])


def _attention(stage: StageConfig, block: int, map_size: int, stage_key: str) -> Attention:
    """The attention of a block of a stage, given by its 0-based index."""
    key = ("first", "second")[stage.pattern[block % len(stage.pattern)] - 1]
    slot = Slot(stage.dim, stage.heads, 1, Role.STAGE, block, ((map_size, map_size),))
    return attention.build_block(getattr(stage, key), slot, where=f"{stage_key}.{key}")


def _active_stages(config: VitConfig, where: str) -> list[StageConfig]:
    """The stages up to the last one that has blocks."""
    stages = [config.stage1, config.stage2, config.stage3, config.stage4]
    while stages and not stages[-1].depth:
        stages.pop()
    for number, stage in enumerate(stages, start=1):
        key = f"{where}.stage{number}"
        if not stage.depth:
            raise UserError(f"{key}.depth = 0: only the last stages can be empty", key=f"{key}.depth")
        if stage.dim % stage.heads:
            raise UserError(
                f"{key}.heads = {stage.heads}: must divide {key}.dim = {stage.dim}", key=(f"{key}.heads", f"{key}.dim")
            )
        if not stage.pattern:
            raise UserError(f"{key}.pattern = []: expected at least one of 1 and 2", key=f"{key}.pattern")
    if not stages:
        raise UserError(f"{where}.stage1.depth = 0: must be at least 1", key=f"{where}.stage1.depth")
    if config.patch_embed == "overlap" and stages[0].dim % 2:
        raise UserError(
            f"{where}.stage1.dim = {stages[0].dim}: must be even with {where}.patch_embed = 'overlap'",
            key=(f"{where}.stage1.dim", f"{where}.patch_embed"),
        )
    return stages
