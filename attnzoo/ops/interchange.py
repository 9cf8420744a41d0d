"""Ways in and out of the operators for other people's code: Deformable-DETR's call, ONNX."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attnzoo.ops.checks import check_dense
from attnzoo.ops.ms_deform_attn import reference
from attnzoo.ops.ms_deform_attn.operator import ms_deform_attn

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class MSDeformAttnFunction:
    """`ms_deform_attn` under the name and with the arguments of Deformable-DETR's extension (models/ops).

    Replace `from .functions import MSDeformAttnFunction` by `from attnzoo.ops import MSDeformAttnFunction`.
    """

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int = 64,
    ) -> Tensor:
        """Sample as `ms_deform_attn` does; returns (B, Q, M·D).

        - `value_spatial_shapes`: (L, 2) integers, h and w per level; reading them waits for the GPU they are on
        - `value_level_start_index`: (L,) integers, the first token of each level, levels lying one after the other
        - `im2col_step`: not used; any batch is taken at once

        Raises TypeError or ValueError if these two are something else or the starts are not those of consecutive
        levels, and what `ms_deform_attn` raises.
        """
        shapes = [(h, w) for h, w in _integers("value_spatial_shapes", value_spatial_shapes, 2)]
        starts = [sum(h * w for h, w in shapes[:level]) for level in range(len(shapes))]
        given = _integers("value_level_start_index", value_level_start_index)
        if given != starts:
            raise ValueError(
                f"value_level_start_index: is {given}, but levels of "
                f"value_spatial_shapes {shapes} one after the other start at {starts}"
            )
        return ms_deform_attn(value, shapes, sampling_locations, attention_weights)


def _integers(name: str, tensor: Tensor, *pair: int) -> list[Any]:
    """What a tensor (L, *pair) of integers holds."""
    layout = str(("L", *pair)).replace("'", "")
    check_dense(name, tensor, f"a tensor {layout} of integers")
    if tensor.dtype not in INTEGERS:
        raise TypeError(f"{name}: expected integers, got {tensor.dtype}")
    if tensor.dim() != 1 + len(pair) or tensor.shape[1:] != pair:
        raise ValueError(f"{name}: expected {layout}, got shape {tuple(tensor.shape)}")
    numbers: list[Any] = tensor.tolist()
    return numbers


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., Tensor]]:
    """The operators as plain PyTorch, for `torch.export.ExportedProgram.run_decompositions`.

    What remains has ONNX counterparts from opset 20 on (GridSample):

        program = torch.export.export(model, inputs).run_decompositions(attnzoo.ops.decompositions())
        torch.onnx.export(program, opset_version=20).save("model.onnx")
    """
    return {
        torch.ops.attnzoo.ms_deform_attn.default: _plain(reference.ms_deform_attn),
        torch.ops.attnzoo.ms_deform_attn_fused.default: _plain(reference.ms_deform_attn_fused),
    }


def _plain(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` with its shapes as the operators' schemas have them: h, w of each level in turn."""

    def decomposition(value: Tensor, shapes: Sequence[int], *others: Tensor) -> Tensor:
        return function(value, list(zip(shapes[::2], shapes[1::2], strict=True)), *others)

    return decomposition
