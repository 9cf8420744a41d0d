"""Ways in and out of the operators for other people's code: Deformable-DETR's call, ONNX."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attnzoo.ops import reference
from attnzoo.ops.deform_attn import ms_deform_attn


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

        Raises ValueError if the starts are not those of consecutive levels, and what `ms_deform_attn` raises.
        """
        shapes = [(int(h), int(w)) for h, w in value_spatial_shapes.tolist()]
        starts = [sum(h * w for h, w in shapes[:level]) for level in range(len(shapes))]
        if value_level_start_index.tolist() != starts:
            raise ValueError(
                f"value_level_start_index: is {value_level_start_index.tolist()}, but levels of "
                f"value_spatial_shapes {shapes} one after the other start at {starts}"
            )
        return ms_deform_attn(value, shapes, sampling_locations, attention_weights)


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
