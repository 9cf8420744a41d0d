"""The backbone's stem: ReLU after max pooling gives the same maps and gradients as timm's order."""

import pytest
import timm
import torch

from attnzoo.models.backbone import Backbone
from attnzoo.models.config import BackboneConfig


@pytest.mark.parametrize("strides", [[4, 8], [2, 8]])
def test_stem_is_exactly_that_of_timm(strides):
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(name="resnet18", strides=strides, norm="trained", freeze=[]))
    indices = [[2, 4, 8].index(stride) for stride in strides]
    published = timm.create_model("resnet18", features_only=True, out_indices=indices)
    published.load_state_dict(backbone.body.state_dict())
    layers = [name for name, _ in backbone.body.named_children()]
    assert layers[:4] == ["conv1", "bn1", *(["act1", "maxpool"] if 2 in strides else ["maxpool", "act1"])]

    images = torch.randn(2, 3, 45, 38)
    gradients = []
    for model in (backbone, published):
        maps = model(images)
        sum(x.square().sum() for x in maps).backward()
        gradients.append((maps, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
