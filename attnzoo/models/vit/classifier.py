"""Image classification with a hierarchical ViT."""

from einops import rearrange
from torch import Tensor, nn

from attnzoo.models.masks import resize_mask
from attnzoo.models.precision import match_precision
from attnzoo.models.vit.config import ClassifierConfig, VitConfig
from attnzoo.models.vit.trunk import Trunk
from attnzoo.models.weights import load_weights


class Classifier(nn.Module):
    """Images (B, 3, H, W) to logits (B, `num_classes`): LayerNorm, average pooling and linear head on the last map.

    Raises UserError, naming the key, for an invalid configuration.
    """

    def __init__(self, config: VitConfig, num_classes: int):
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.trunk = Trunk(config)
        dim = self.trunk.feature_info.channels()[-1]
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        if config.init == "swin":
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
        if isinstance(config, ClassifierConfig) and config.weights is not None:
            load_weights(self, config.weights, "model.weights")

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` (B, H, W) is True where images are padded; pooling leaves padding out."""
        images = match_precision(images, self.head.weight)
        x = self.norm(self.trunk(images, mask)[-1])
        tokens = rearrange(x, "b h w c -> b (h w) c")
        if mask is None:
            return self.head(tokens.mean(1))
        valid = rearrange(~resize_mask(mask, x.shape[1], x.shape[2]), "b h w -> b (h w) 1")
        return self.head((tokens * valid).sum(1) / valid.sum(1).clamp(min=1))
