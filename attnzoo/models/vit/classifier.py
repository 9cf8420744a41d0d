"""Image classification with a hierarchical vision transformer."""

from torch import Tensor, nn

from attnzoo.config.schema import VitConfig
from attnzoo.models.vit.trunk import Trunk


class Classifier(nn.Module):
    """Images (B, 3, H, W) to logits (B, `num_classes`): the last map, normalised, averaged and mapped linearly."""

    def __init__(self, config: VitConfig, num_classes: int):
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.trunk = Trunk(config)
        dim = self.trunk.feature_info.channels()[-1]
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.trunk(images)[-1]).mean((1, 2)))
