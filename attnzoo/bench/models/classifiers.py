"""DAT with this package's operators, and with grid_sample and einsum as published."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo import models
from attnzoo.attention.dat import DeformableKeyValueAttention
from attnzoo.attention.dat_bias import MlpBias, Positions, TableBias
from attnzoo.attention.dat_grid import GridSpec
from attnzoo.bench.models.base import BenchModel, BenchTask, Outputs
from attnzoo.bench.operators.base import OURS

PYTORCH = "grid_sample + einsum"
CLASSES = 1000
TINY: dict[str, Any] = {
    "image_size": 64,
    **{f"stage{i + 1}": {"dim": 24 * 2**i, "depth": depth, "heads": 3 * 2**i} for i, depth in enumerate((1, 1, 2, 2))},
}


class PyTorchAttention(DeformableKeyValueAttention):
    """DAT's attention in plain PyTorch (Xia et al., CVPR 2022), with the bias of all query-key pairs in memory."""

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, positions: Positions) -> Tensor:
        assert positions.key_padding is None
        scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * query.shape[-1] ** -0.5
        if isinstance(self.rpe_table, (TableBias, MlpBias)):
            scores = scores + self.rpe_table.bias_matrix(positions)
        return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), value)

    def _sample_tokens(self, tokens: Tensor, locations: Tensor, grid: GridSpec, shape: tuple[int, int]) -> Tensor:
        maps = tokens.transpose(1, 2).unflatten(1, (self.groups, -1)).unflatten(3, shape).flatten(0, 1)
        points = 2 * locations.transpose(1, 2).flatten(0, 1)[:, None] - 1
        samples = F.grid_sample(maps, points, mode="bilinear", padding_mode="zeros", align_corners=False)
        return samples[:, :, 0].unflatten(0, (-1, self.groups)).flatten(1, 2).transpose(1, 2)


class Classifier(BenchModel):
    def __init__(self, model: nn.Module):
        self.model = model

    def predict(self, images: Tensor) -> Outputs:
        return {"logits": self.model(images)}

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.model(images), targets)


def build_models(name: str, tiny: bool, device: torch.device) -> tuple[dict[str, BenchModel], None]:
    """The model with either attention; weights are perturbed, so that none is zero and the bias has an effect."""
    torch.manual_seed(0)
    model = models.create(name, num_classes=CLASSES, drop_path=0.0, **(TINY if tiny else {})).to(device)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            std = 1.0 if "rpe_table" in path else 0.02
            parameter.add_((std * torch.randn(parameter.shape, generator=g)).to(device))
    return {OURS: Classifier(model), PYTORCH: Classifier(_use_pytorch_attention(model))}, None


def _use_pytorch_attention(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, DeformableKeyValueAttention):
            module.__class__ = PyTorchAttention
    return model


def _make_targets(batch: int, device: torch.device) -> Tensor:
    return torch.randint(CLASSES, (batch,), generator=torch.Generator().manual_seed(1)).to(device)


CLASSIFICATION = BenchTask(
    ("dat_tiny", "dat_pp_tiny"), build_models, _make_targets, forward=(8, 224, 224), training=(8, 224, 224)
)
