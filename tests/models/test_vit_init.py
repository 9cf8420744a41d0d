"""Initialisation of hierarchical ViTs: that of Swin, and PyTorch's defaults as in DAT and DAT++."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from attnzoo import models
from attnzoo.models.vit.classifier import Classifier
from attnzoo.models.vit.init import reset_to_pytorch_defaults

PRESETS = ("swin_tiny", "dat_tiny", "dat_pp_tiny")
SHALLOW = {"stage3": {"depth": 2}}
LINEAR = {  # what Swin initialises with a truncated normal, and PyTorch uniformly
    "swin_tiny": ["mlp.fc1", "mlp.fc2", "attention.qkv", "attention.proj", "downsample.reduction", "head"],
    "dat_tiny": ["mlp.fc1", "mlp.fc2", "attention.qkv", "attention.proj", "head"],
    "dat_pp_tiny": ["mlp.fc1", "mlp.fc2", "attention.qkv", "attention.proj", "head"],
}
CONVOLUTIONS = {  # PyTorch's default in all models
    "swin_tiny": ["patch_embed.conv"],
    "dat_tiny": ["patch_embed.conv", "downsample.conv", "conv_offset.0.0"],
    "dat_pp_tiny": ["patch_embed.0.conv", "downsample.conv", "conv_offset.0.0", "mlp.conv.conv", "local.conv"],
}


@cache
def model(preset: str, **changes: str) -> Classifier:
    torch.manual_seed(0)
    return models.create(preset, **SHALLOW, **changes)


def layers(preset: str, suffix: str) -> list[nn.Linear | nn.Conv2d]:
    modules = [module for name, module in model(preset).named_modules() if name.endswith(suffix)]
    assert modules, suffix
    return modules  # type: ignore[return-value]


def assert_uniform(tensor: Tensor, bound: float) -> None:
    x = tensor.detach()
    assert 0 < x.abs().max() <= bound
    if x.numel() > 1000:
        assert x.abs().max() == pytest.approx(bound, rel=0.02)
        assert x.std() == pytest.approx(bound / 3**0.5, rel=0.05)


def assert_pytorch_default(layer: nn.Linear | nn.Conv2d) -> None:
    bound = layer.weight[0].numel() ** -0.5  # 1 / sqrt(fan_in)
    for parameter in layer.parameters():
        assert_uniform(parameter, bound)


@pytest.mark.parametrize(("preset", "suffix"), [(p, s) for p in PRESETS for s in LINEAR[p]])
def test_linear_layers(preset: str, suffix: str) -> None:
    for layer in layers(preset, suffix):
        if preset == "swin_tiny":
            assert layer.weight.detach().std() == pytest.approx(0.02, rel=0.05)
            assert layer.bias is None or not layer.bias.any()
        else:
            assert_pytorch_default(layer)


@pytest.mark.parametrize(("preset", "suffix"), [(p, s) for p in PRESETS for s in CONVOLUTIONS[p]])
def test_convolutions(preset: str, suffix: str) -> None:
    for layer in layers(preset, suffix):
        assert_pytorch_default(layer)


@pytest.mark.parametrize("preset", ["dat_tiny", "dat_pp_tiny"])
@pytest.mark.parametrize("projection", ["proj_q", "proj_k", "proj_v", "proj_out"])
def test_projections_of_deformable_attention(preset: str, projection: str) -> None:
    for layer in layers(preset, projection):
        assert_pytorch_default(layer)


@pytest.mark.parametrize(
    ("preset", "table", "std"),
    [
        ("swin_tiny", "relative_position_bias_table", 0.02),
        ("dat_tiny", "relative_position_bias_table", 0.01),
        ("dat_tiny", "rpe_table.0", 0.01),
        ("dat_pp_tiny", "rpb", 0.02),
        ("dat_pp_tiny", "rpe_table.0", 0.01),
    ],
)
def test_position_bias_tables(preset: str, table: str, std: float) -> None:
    tables = [p.detach().flatten() for name, p in model(preset).named_parameters() if name.endswith(table)]
    assert torch.cat(tables).std() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("preset", PRESETS)
def test_norms_start_as_identity(preset: str) -> None:
    for module in model(preset).modules():
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_do_not_depend_on_the_initialisation(preset: str) -> None:
    shapes = [{k: p.shape for k, p in model(preset, init=init).named_parameters()} for init in ("swin", "pytorch")]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["dat", "deform", "dense", "ms_deform"])
def test_attentions_with_their_own_initialisation_keep_it(name: str) -> None:
    changes = {"stage3": {"depth": 2, "second": {"name": name}}}
    attention = models.create("swin_tiny", **changes).trunk.stages[2].blocks[1].attention
    before = {key: tensor.clone() for key, tensor in attention.state_dict().items()}
    reset_to_pytorch_defaults(nn.Sequential(nn.Linear(2, 2), attention))
    assert all(torch.equal(tensor, before[key]) for key, tensor in attention.state_dict().items())


def test_backbones_are_initialised_like_classifiers() -> None:
    fc1 = models.features("dat_tiny", **SHALLOW).trunk.stages[0].blocks[0].mlp.fc1
    assert_pytorch_default(fc1)


def test_small_presets_share_their_initialisation() -> None:
    """dat_vs_swin compares attentions, not initialisations."""
    heads = [models.create(preset).head for preset in ("swin_pico", "dat_pico")]
    assert all(not head.bias.any() for head in heads)
