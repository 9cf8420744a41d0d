"""A record of one forward pass of an attention."""

from typing import Any

import torch
from torch import nn

from attnzoo import attention
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot
from attnzoo.inference.records import AttentionRecord, record_attentions

SHAPES = ((6, 8), (3, 4))


def recorded(
    name: str, role: Role = Role.ENCODER, boxes: bool = False, constant_offsets: bool = False, **options: Any
) -> tuple[AttentionRecord, Any]:
    """The record of one forward pass, with perturbed parameters, on two levels; and the attention.

    `constant_offsets`: those of `ms_deform` are its bias.
    """
    torch.manual_seed(0)
    if name == "deform":
        options = {"level": 1} | options
    module = attention.build(name, Slot(16, 4, 2, role), **options).eval()
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    if constant_offsets:
        module.sampling_offsets.weight.data.zero_()
    memory = Pyramid(torch.randn(1, 60, 16), Layout.unpadded(SHAPES, 1))
    queries = memory.as_queries()
    if role == Role.DECODER:
        references = torch.rand(1, 5, 4 if boxes else 2) * 0.5 + 0.2
        queries = Queries(torch.randn(1, 5, 16), references)
    found: list[AttentionRecord] = []
    with torch.no_grad(), record_attentions(nn.ModuleDict({"layer": module}), found.append):
        module(queries, memory)
    (record,) = found
    return record, module
