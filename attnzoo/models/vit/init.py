"""Initialisation of hierarchical ViTs as in DAT."""

from torch import nn

from attnzoo.attention import Attention
from attnzoo.attention.qkv import QkvAttention
from attnzoo.attention.window import WindowAttention


def reset_to_pytorch_defaults(module: nn.Module) -> None:
    """Set the convolutions and linear layers of a ViT to PyTorch's defaults, U(±1/√fan_in) for weights and biases.

    Attentions keep their own initialisation, except the projections of window and neighborhood attention and the bias
    table of window attention, trunc_normal_(std=0.01).
    """
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        module.reset_parameters()
    if isinstance(module, WindowAttention) and module.relative_position_bias_table is not None:
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.01)
    for child in module.children():
        if isinstance(child, QkvAttention) or not isinstance(child, Attention):
            reset_to_pytorch_defaults(child)
