"""Image classification with a hierarchical vision transformer."""

from torch import Tensor, nn

from attnzoo.models.vit.config import ClassifierConfig, VitConfig
from attnzoo.models.vit.trunk import Trunk, layout_of
from attnzoo.models.weights import load_weights


class Classifier(nn.Module):
    """Images (B, 3, H, W) to logits (B, `num_classes`): the last map, normalised, averaged and mapped linearly.

    Raises UserError, naming the key, for a configuration that cannot work.
    """

    def __init__(self, config: VitConfig, num_classes: int):
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.trunk = Trunk(config)
        dim = self.trunk.feature_info.channels()[-1]
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        if isinstance(config, ClassifierConfig) and config.weights is not None:
            load_weights(self, config.weights, "model.weights", own="head.")

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` (B, H, W) is True where the images are padded."""
        x = self.norm(self.trunk(images, mask)[-1])
        batch, height, width = x.shape[:3]
        padding = layout_of(batch, height, width, mask, x.device).padding_mask
        x = x.flatten(1, 2)
        if padding is None:
            return self.head(x.mean(1))
        valid = ~padding[..., None]
        return self.head((x * valid).sum(1) / valid.sum(1).clamp(min=1))
