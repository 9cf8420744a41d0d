"""Swin against timm and Hugging Face transformers 4.57.6, with the same perturbed weights."""

import copy
from typing import Any

import pytest
import timm
import torch
from support.oracles import converted_state, perturb
from torch import Tensor, nn

from attnzoo import interop, models
from attnzoo.attention.window_partition import WindowPartition
from attnzoo.errors import UserError
from attnzoo.geometry import Layout
from attnzoo.models.vit.classifier import Classifier

CLASSES = 5
# Multiples of 4 · 32, so that no map needs window padding, which the other implementations attend to.
SIZES = [(128, 128), (256, 128), (128, 384)]


def converted(state: dict[str, Tensor]) -> Classifier:
    stages = {
        f"stage{i + 1}": {"dim": 12 * 2**i, "heads": 3 * 2**i, "depth": 2, "first": {"window": 4}} for i in range(4)
    }
    for stage in stages.values():
        stage["second"] = {"window": 4, "shift": 2}
    model = models.create("swin_tiny", num_classes=CLASSES, **stages)
    interop.load(model, state)
    return model.eval()


def timm_model(size: tuple[int, int]) -> nn.Module:
    options: dict[str, Any] = {"embed_dim": 12, "depths": (2, 2, 2, 2), "num_heads": (3, 6, 12, 24), "window_size": 4}
    torch.manual_seed(0)
    model = timm.models.SwinTransformer(img_size=size, num_classes=CLASSES, **options)
    perturb(model)
    return model.eval()


def transformers_model() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        embed_dim=12, depths=[2, 2, 2, 2], num_heads=[3, 6, 12, 24], window_size=4, num_labels=CLASSES
    )
    torch.manual_seed(0)
    model = transformers.SwinForImageClassification(config)
    perturb(model)
    return model.eval()


def images(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_timm(size: tuple[int, int]) -> None:
    reference = timm_model(size)
    model = converted(reference.state_dict())
    x = images(size)
    torch.testing.assert_close(model(x), reference(x), atol=1e-5, rtol=0)
    maps = reference.forward_intermediates(x, intermediates_only=True)
    for actual, expected in zip(model.trunk(x), maps, strict=True):
        torch.testing.assert_close(actual.permute(0, 3, 1, 2), expected, atol=1e-5, rtol=1e-5)


# Where a map is one window high or wide, transformers does not shift along the other axis either.
@pytest.mark.parametrize("size", [(128, 128), (256, 384)], ids=str)
def test_transformers(size: tuple[int, int]) -> None:
    reference = transformers_model()
    model = converted(reference.state_dict())
    x = images(size)
    torch.testing.assert_close(model(x), reference(x, interpolate_pos_encoding=True).logits, atol=1e-5, rtol=0)


def test_padding_of_windows_is_the_only_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where windows are padded, outputs differ from transformers', and are the same if the padding is attended."""
    reference = transformers_model()
    model = converted(reference.state_dict())
    x = images((160, 224))  # maps of 40 x 56, 20 x 28, 10 x 14 and 5 x 7
    expected = reference(x, interpolate_pos_encoding=True).logits
    assert (model(x) - expected).abs().max() > 1e-3
    masked = WindowPartition._mask

    def attended(self: WindowPartition, layout: Layout) -> Tensor | None:
        """The mask of a map that has the size of its windows."""
        whole = copy.copy(self)
        whole.height, whole.width = self.rows * self.window, self.columns * self.window
        whole.pad = (0, 0)
        return masked(whole, layout)

    monkeypatch.setattr(WindowPartition, "_mask", attended)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=0)


def test_gradients() -> None:
    reference = timm_model(SIZES[1])
    model = converted(reference.state_dict())
    x, weights = images(SIZES[1]), torch.randn(2, CLASSES, generator=torch.Generator().manual_seed(2))
    for each in (reference, model):
        (each(x) * weights).sum().backward()
    expected = converted_state({name: p.grad for name, p in reference.named_parameters()}, model)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (gradients[name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-3)
        assert error <= 1e-4, f"{name}: {error:.1e}"


def test_official_keys() -> None:
    """Like timm's, but downsampling ends a layer, the head has no submodule, and indices and masks are saved."""
    state = timm_model(SIZES[0]).state_dict()
    official = {
        "layers.0.blocks.1.attn_mask": torch.zeros(1),
        "layers.0.blocks.1.attn.relative_position_index": torch.zeros(1),
    }
    for name, tensor in state.items():
        if ".downsample." in name:
            layer, rest = int(name.split(".")[1]), name.split(".", 2)[2]
            name = f"layers.{layer - 1}.{rest}"
        official[name.replace("head.fc.", "head.")] = tensor
    actual, expected = converted(official).state_dict(), converted(state).state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_unexpected_key_raises() -> None:
    state = timm_model(SIZES[0]).state_dict()
    with pytest.raises(UserError, match=r"1 unexpected key, such as 'absolute_pos_embed'"):
        converted({**state, "absolute_pos_embed": torch.zeros(1)})
