"""Tensors of other sizes: position bias tables, queries, feature levels."""

import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

# Swin: (entries, heads); NATTEN and DAT: (heads, rows, columns).
_POSITION_BIAS = re.compile(r"(relative_position_bias_table|rpb|rpe_table\.\d+)\Z")


def is_resizable_bias(name: str, tensor: Tensor, shape: torch.Size) -> bool:
    """Whether this is a position bias table of as many heads; one of two dimensions is of square windows."""
    if _POSITION_BIAS.search(name) is None or tensor.ndim != len(shape) or not tensor.numel():
        return False
    heads_dim = 1 if tensor.ndim == 2 else 0
    square = tensor.ndim != 2 or math.isqrt(len(tensor)) ** 2 == len(tensor)
    return square and tensor.shape[heads_dim] == shape[heads_dim]


def resize_position_bias(table: Tensor, shape: torch.Size) -> Tensor:
    """Bicubic resize of a position bias table: (entries, heads) of square windows, or (heads, rows, columns).

    As in the published code of Swin (utils.load_pretrained) and DAT.
    """
    if table.ndim == 3:
        return F.interpolate(table[None], size=tuple(shape[1:]), mode="bicubic")[0]
    old, new = math.isqrt(table.shape[0]), math.isqrt(shape[0])
    square = rearrange(table, "(h w) heads -> 1 heads h w", h=old)
    return rearrange(F.interpolate(square, size=(new, new), mode="bicubic"), "1 heads h w -> (h w) heads")


def projection_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """The modules that project feature maps to the levels of a detector's neck, in the order of the levels."""
    indices = sorted(
        int(match[1]) for name in tensors if (match := re.fullmatch(r"neck\.projections\.(\d+)\.0\.weight", name))
    )
    return [f"neck.projections.{i}" for i in indices] + ["neck.c6"] * ("neck.c6.0.weight" in tensors)


def align_levels(file: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> dict[int, int]:
    """The level in the file of each of the model's levels that has one: its projection has the same shape."""
    shapes = [file[f"{name}.0.weight"].shape for name in projection_names(file)]
    ours = [model[f"{name}.0.weight"].shape for name in projection_names(model)]
    return {level: shapes.index(shape) for level, shape in enumerate(ours) if shape in shapes}


def rows_of_levels(
    tensor: Tensor, current: Tensor, heads: int, levels: Mapping[int, int], num_levels: int
) -> Tensor | None:
    """`current` with the rows of known levels from `tensor`; None if their other sizes differ.

    Rows are (heads, levels, points and coordinates), as in the projections of deformable attention; the file has
    `num_levels`. `levels` maps those of the model to those of the file.
    """
    if tensor.shape[0] % (heads * num_levels) or tensor.shape[1:] != current.shape[1:]:
        return None
    theirs = tensor.reshape(heads, num_levels, -1, *tensor.shape[1:])
    if current.shape[0] % (heads * theirs.shape[2]):
        return None
    ours = current.clone().view(heads, -1, *theirs.shape[2:])
    for level, other in levels.items():
        if level < ours.shape[1]:
            ours[:, level] = theirs[:, other]
    return ours.view(current.shape)
