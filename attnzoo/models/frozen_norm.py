"""BatchNorm with fixed statistics, weight and bias, folded into the preceding convolution."""

from itertools import pairwise

import torch
from timm.layers import freeze_batch_norm_2d
from timm.models import FeatureListNet
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

SEQUENTIAL_MODULES = (nn.Sequential, FeatureListNet, BasicBlock, Bottleneck)
"""Module types that apply their children in order: a norm after a convolution normalises its output."""


class FoldedFrozenBatchNorm2d(FrozenBatchNorm2d):
    """The buffers of a FrozenBatchNorm2d that the preceding `ConvFrozenBN2d` applies; an identity."""

    def __init__(self, norm: FrozenBatchNorm2d):
        super().__init__(len(norm.weight), norm.eps)
        for name, buffer in norm.named_buffers():
            setattr(self, name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Per-channel scale and shift (C,)."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class ConvFrozenBN2d(nn.Conv2d):
    """Conv2d fused with a FrozenBatchNorm2d: y = conv(x, w · scale) + shift.

    The weight is folded in every forward pass, so that state dicts hold the original one. With gradients, scale and
    shift are applied to the output instead: folding is slower where maps are smaller than the weight, and this backward
    saves only the scale, while F.batch_norm would save the map.
    """

    def __init__(self, conv: nn.Conv2d, norm: FoldedFrozenBatchNorm2d):
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=False,
            padding_mode=conv.padding_mode,
            device="meta",
        )
        self.weight = conv.weight
        self._norm = (norm,)  # in a tuple, not a submodule: the parent registers it under its published name

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self._norm[0].scale_and_shift()
        if torch.is_grad_enabled():
            y = self._conv_forward(x, self.weight, None)
            return y.mul(scale[:, None, None]).add_(shift[:, None, None]).to(y.dtype)
        return self._conv_forward(x, self.weight * scale[:, None, None, None], shift)


@torch.no_grad()
def reset_zero_batch_norms(body: nn.Module) -> None:
    """Set BatchNorm weights that are all zero to one, their value in published models.

    timm initialises the last norm of a residual branch to zero; frozen, it would never let the branch train.
    """
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            module.weight.copy_(torch.where(module.weight.any(), module.weight, 1.0))


def freeze_and_fold_batch_norms(body: nn.Module) -> nn.Module:
    """Replace BatchNorm2d by FrozenBatchNorm2d, folded where it follows a convolution in a sequential module."""
    body = freeze_batch_norm_2d(body)
    for parent in list(body.modules()):
        if type(parent) in SEQUENTIAL_MODULES:  # a subclass may call its children in another order
            _fold(parent)
    return body


def _fold(parent: nn.Module) -> None:
    returned = getattr(parent, "return_layers", ())  # layers whose output a FeatureListNet returns too
    for (name, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
        if type(conv) is not nn.Conv2d or conv.bias is not None or name in returned:
            continue
        if type(norm) is FrozenBatchNorm2d:
            folded = FoldedFrozenBatchNorm2d(norm)
            setattr(parent, norm_name, folded)
            setattr(parent, name, ConvFrozenBN2d(conv, folded))
