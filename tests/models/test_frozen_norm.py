"""Frozen norms folded into convolutions give the same maps, gradients and keys as separate norms."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from attnzoo.models.backbone import Backbone
from attnzoo.models.config import BackboneConfig
from attnzoo.models.frozen_norm import ConvFrozenBN2d, FoldedFrozenBatchNorm2d, freeze_and_fold_batch_norms

BODIES = ["resnet18", "resnet50", "resnet18d", "seresnet50", "ghostnet_050"]


def bodies(name: str) -> tuple[nn.Module, nn.Module]:
    """A small float64 backbone with random statistics, its norms frozen by timm and by attnzoo."""
    torch.manual_seed(0)
    small = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]} if "resnet" in name else {}
    body = timm.create_model(name, features_only=True, **small).double()
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert isinstance(tensor, Tensor)
                nn.init.uniform_(tensor, 0.5, 1.5)
    return freeze_batch_norm_2d(copy.deepcopy(body)), freeze_and_fold_batch_norms(body)


@pytest.mark.parametrize("name", BODIES)
def test_maps_and_gradients_equal_those_of_separate_norms(name: str) -> None:
    plain, folded = bodies(name)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    actual, expected_maps = folded(images), plain(images)
    with torch.no_grad():
        without_gradients = folded(images)
    for x, z, y in zip(actual, without_gradients, expected_maps, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(z, y, rtol=1e-10, atol=1e-10)
    for maps in (actual, expected_maps):
        sum(m.square().mean() for m in maps).backward()
    expected = dict(plain.named_parameters())
    for key, parameter in folded.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key].grad, rtol=1e-8, atol=1e-10, msg=key)


@pytest.mark.parametrize(("name", "left"), [("resnet50", 0), ("resnet18d", 1)])
def test_every_norm_after_a_convolution_is_folded(name: str, left: int) -> None:
    """The norm after a deep stem, which is an nn.Sequential instead of a convolution, is not folded."""
    modules = list(bodies(name)[1].modules())
    assert sum(type(m) is FrozenBatchNorm2d for m in modules) == left
    assert (
        sum(isinstance(m, FoldedFrozenBatchNorm2d) for m in modules)
        == sum(isinstance(m, ConvFrozenBN2d) for m in modules)
        > 0
    )


def test_state_dict_keys_are_unchanged_and_loading_takes_effect() -> None:
    plain, folded = bodies("resnet50")
    assert list(folded.state_dict()) == list(plain.state_dict())
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    copied = copy.deepcopy(folded)
    copied.load_state_dict({name: tensor * 0.9 for name, tensor in folded.state_dict().items()})
    plain.load_state_dict(copied.state_dict())
    torch.testing.assert_close(copied(images)[-1], plain(images)[-1], rtol=1e-10, atol=1e-10)
    assert not torch.equal(copied(images)[-1], folded(images)[-1])


@pytest.mark.parametrize("gradients", [False, True])
def test_maps_keep_half_precision_under_autocast(gradients: bool) -> None:
    folded = bodies("resnet18")[1].float()
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(gradients):
        maps = folded(torch.randn(1, 3, 32, 32))
    assert {m.dtype for m in maps} == {torch.bfloat16}


def test_norm_saves_no_map_for_backward() -> None:
    conv = next(m for m in bodies("resnet18")[1].modules() if isinstance(m, ConvFrozenBN2d))
    images = torch.randn(1, conv.in_channels, 32, 32, dtype=torch.float64, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        conv(images)
    assert sorted(kept) == sorted([images.numel(), conv.weight.numel(), conv.out_channels])


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "seresnet50", "regnetx_002", "res2net50_26w_4s"])
def test_every_trainable_tensor_of_an_untrained_backbone_gets_a_gradient(name: str) -> None:
    """timm initialises the last norm of every residual branch to zero."""
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(name=name, freeze=[]))
    sum(m.square().mean() for m in backbone(torch.randn(1, 3, 64, 64))).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_loaded_norm_weights_stay_zero(tmp_path: Path) -> None:
    body = timm.create_model("resnet18", features_only=True)
    torch.save(body.state_dict(), tmp_path / "weights.pth")
    backbone = Backbone(BackboneConfig(name="resnet18", weights=str(tmp_path / "weights.pth")))
    assert not backbone.state_dict()["body.layer1.0.bn2.weight"].any()
