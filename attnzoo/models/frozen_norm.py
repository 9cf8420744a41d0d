"""Batch normalisation that stays as it is, as a part of the convolution before it."""

from itertools import pairwise

import torch
from timm.layers import freeze_batch_norm_2d
from timm.models import FeatureListNet
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

IN_ORDER = (nn.Sequential, FeatureListNet, BasicBlock, Bottleneck)
"""Modules in which what stands after a convolution gets its output."""


class FoldedFrozenBatchNorm2d(FrozenBatchNorm2d):
    """The buffers of a frozen norm, which the convolution before it applies."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def affine(self) -> tuple[Tensor, Tensor]:
        """Factor and summand (C,) of each channel."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class ConvFrozenBN2d(nn.Conv2d):
    """A convolution and the frozen norm of its output in one: y = conv(x, w · scale) + shift.

    The weights are folded on every call, so that they load as those of the plain convolution do. With gradients the
    norm stands by itself, as on maps smaller than the weights folding costs more, forward and backward; of its factor
    and summand the backward pass needs the factor alone, where `batch_norm` would keep the map.
    """

    def __init__(self, plain: nn.Conv2d, norm: FoldedFrozenBatchNorm2d):
        super().__init__(
            plain.in_channels,
            plain.out_channels,
            plain.kernel_size,  # type: ignore[arg-type]
            plain.stride,  # type: ignore[arg-type]
            plain.padding,  # type: ignore[arg-type]
            plain.dilation,  # type: ignore[arg-type]
            plain.groups,
            bias=False,
            padding_mode=plain.padding_mode,
            device="meta",
        )
        self.weight = plain.weight
        self._norm = (norm,)  # no submodule: its buffers keep the one name that published weights give them

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self._norm[0].affine()
        if torch.is_grad_enabled():
            y = self._conv_forward(x, self.weight, None)
            return y.mul(scale[:, None, None]).add_(shift[:, None, None]).to(y.dtype)
        return self._conv_forward(x, self.weight * scale[:, None, None, None], shift)


def freeze_and_fold_batch_norms(body: nn.Module) -> nn.Module:
    """`body` with its batch norms as buffers, those of residual blocks and sequences folded into their convolutions."""
    body = freeze_batch_norm_2d(body)
    for parent in list(body.modules()):
        if type(parent) in IN_ORDER:  # a subclass may have an order of its own
            _fold(parent)
    return body


def _fold(parent: nn.Module) -> None:
    features = getattr(parent, "return_layers", ())  # a FeatureListNet gives some outputs to its caller too
    for (name, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
        if type(conv) is not nn.Conv2d or conv.bias is not None or name in features:
            continue
        if type(norm) is FrozenBatchNorm2d:
            folded = FoldedFrozenBatchNorm2d(conv.out_channels, norm.eps)
            folded._buffers = norm._buffers
            setattr(parent, norm_name, folded)
            setattr(parent, name, ConvFrozenBN2d(conv, folded))
