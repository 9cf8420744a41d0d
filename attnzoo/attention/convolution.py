"""Plain and deformable convolution in place of attention: control arms without attention weights.

Both apply one k × k convolution of all channels to every level, with shared weights, and read `memory.tokens`.
"""

from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

from attnzoo.attention.base import Attention, autocast_disabled, register
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot


class _PerLevelConvolution(Attention):
    """A convolution of every level. Subclasses implement `_convolve`."""

    roles: ClassVar[frozenset[Role]] = frozenset({Role.ENCODER, Role.STAGE})

    def __init__(self, slot: Slot, kernel: int):
        super().__init__(slot)
        if kernel < 1 or kernel % 2 == 0:
            raise UserError(f"kernel = {kernel}: must be odd and positive")
        self.kernel = kernel
        self.conv = nn.Conv2d(slot.dim, slot.dim, kernel, padding=kernel // 2)

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        layout = memory.layout
        self.check_levels(layout)
        self.check_grid(queries, layout)
        query_maps = memory_maps = _to_maps(layout.zero_padding(memory.tokens), layout)
        if self.depends_on_queries:
            query_maps = _to_maps(layout.zero_padding(queries.with_pos_embed()), layout)
        recorded: list[tuple[Tensor, Tensor]] = []
        outputs = [self._convolve(*maps, recorded) for maps in zip(query_maps, memory_maps, strict=True)]
        if self.recording:
            weights, locations = (torch.cat(x, 1) for x in zip(*recorded, strict=True))
            self.record(weights=weights[:, :, None], locations=locations)
        return torch.cat([maps.flatten(2).transpose(1, 2) for maps in outputs], 1)

    def _convolve(self, query: Tensor, value: Tensor, recorded: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Output (B, C, h, w); while recording, adds weights (B, h·w, k²) and locations (B, h·w, k², 2)."""
        raise NotImplementedError

    def _locations(self, value: Tensor, offsets: Tensor | float = 0.0) -> Tensor:
        """Locations (B, h·w, k², 2) in [0, 1] of the map of the taps, moved by offsets (B, h·w, k², 2) in pixels."""
        batch, _, height, width = value.shape
        dtype = torch.promote_types(value.dtype, torch.float32)
        y, x = (torch.arange(n, device=value.device, dtype=dtype) for n in (height, width))
        tap = torch.arange(self.kernel, device=value.device, dtype=dtype) - self.kernel // 2
        pixels = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).flatten(0, 1)
        taps = torch.stack([tap.repeat(self.kernel), tap.repeat_interleave(self.kernel)], -1)
        locations = (pixels[:, None] + taps + offsets + 0.5) / pixels.new_tensor([width, height])
        return locations.expand(batch, -1, -1, -1)


@register("conv")
class Convolution(_PerLevelConvolution):
    """A convolution of all channels, `kernel` × `kernel`, per level, with shared weights (LeCun et al., 1989).

    Its weights depend neither on queries nor on positions. Zeros outside the map. `kernel`: odd, in pixels.
    """

    depends_on_queries = False

    def __init__(self, slot: Slot, *, kernel: int = 3):
        super().__init__(slot, kernel)

    def _convolve(self, query: Tensor, value: Tensor, recorded: list[tuple[Tensor, Tensor]]) -> Tensor:
        if self.recording:
            locations = self._locations(value)
            recorded.append((torch.ones_like(locations[..., 0]), locations))
        output: Tensor = self.conv(value)
        return output

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        return memory.num_tokens * self.slot.dim**2 * self.kernel**2


@register("dcn")
class DeformableConvolution(_PerLevelConvolution):
    """Deformable convolution of each level, with shared weights (Zhu et al., Deformable ConvNets v2, CVPR 2019, eq. 1).

    Each of the k² taps of a pixel moves by its own predicted offset, as in Dai et al., Deformable Convolutional
    Networks, ICCV 2017, eq. 2 and 3, and is scaled by a predicted modulation in (0, 1). A convolution of the queries
    predicts both; it starts at zero: no offsets, modulation ½.

    - `kernel`: odd, in pixels
    - `modulation`: false is v1, without the scale of each tap
    """

    def __init__(self, slot: Slot, *, kernel: int = 3, modulation: bool = True):
        super().__init__(slot, kernel)
        self._deform_conv2d = _load_operator()
        self.modulation = modulation
        self.conv_offset = nn.Conv2d(slot.dim, (3 if modulation else 2) * kernel**2, kernel, padding=kernel // 2)
        nn.init.zeros_(self.conv_offset.weight)
        assert self.conv_offset.bias is not None
        nn.init.zeros_(self.conv_offset.bias)

    def _convolve(self, query: Tensor, value: Tensor, recorded: list[tuple[Tensor, Tensor]]) -> Tensor:
        taps, dtype = self.kernel**2, torch.promote_types(value.dtype, torch.float32)
        with autocast_disabled(value):  # half precision would shift taps; torchvision has no bfloat16 on the CPU
            value = value.to(dtype)
            predicted = _conv2d(self.conv_offset, query.to(dtype))
            offsets, mask = predicted[:, : 2 * taps], predicted[:, 2 * taps :].sigmoid()
            output: Tensor = self._deform_conv2d(
                value, offsets, self.conv.weight.to(dtype), _bias(self.conv, dtype), padding=self.kernel // 2,
                mask=mask if self.modulation else None,
            )  # fmt: skip
        if self.recording:
            dy_dx = offsets.flatten(2).transpose(1, 2).unflatten(2, (taps, 2))
            locations = self._locations(value, dy_dx.flip(-1))
            weights = mask.flatten(2).transpose(1, 2) if self.modulation else torch.ones_like(locations[..., 0])
            recorded.append((weights, locations))
        return output.to(query.dtype)

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        taps, dim = self.kernel**2, self.slot.dim
        # 4 multiply-accumulates per bilinear sample: the modulation is folded into the coefficients
        return memory.num_tokens * taps * dim * (self.conv_offset.out_channels + 4 + dim)


def _to_maps(tokens: Tensor, layout: Layout) -> list[Tensor]:
    """Tokens (B, S, C) as one map (B, C, h, w) per level."""
    levels = zip(tokens.split(layout.tokens_per_level, 1), layout.spatial_shapes, strict=True)
    return [level.transpose(1, 2).unflatten(2, shape) for level, shape in levels]


def _conv2d(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight.to(x.dtype), _bias(conv, x.dtype), padding=conv.padding)


def _bias(conv: nn.Conv2d, dtype: torch.dtype) -> Tensor:
    assert conv.bias is not None
    return conv.bias.to(dtype)


@cache
def _load_operator() -> Any:
    """torchvision's `deform_conv2d`, imported when it is first needed, with its FLOP formula.

    Raises UserError without torchvision, which the attentions do not need otherwise.
    """
    try:
        from torchvision.ops import deform_conv2d
    except ImportError:
        raise UserError("attention dcn needs torchvision: pip install torchvision") from None

    operators = torch.ops.torchvision
    if operators.deform_conv2d not in flop_registry:
        register_flop_formula(operators.deform_conv2d)(_deform_conv2d_flops)
        register_flop_formula(operators._deform_conv2d_backward)(_deform_conv2d_backward_flops)
    return deform_conv2d


def _deform_conv2d_flops(
    maps: tuple[int, ...], weight: tuple[int, ...], offset: tuple[int, ...], *_: Any, **__: Any
) -> int:
    """Two per multiply-accumulate: 4 for each sample, and the product of samples and weights."""
    out_channels, in_channels, height, width = weight
    pixels = maps[0] * offset[2] * offset[3]
    return 2 * pixels * height * width * (4 * maps[1] + out_channels * in_channels)


def _deform_conv2d_backward_flops(grad: tuple[int, ...], *args: Any, **kwargs: Any) -> int:
    return 2 * _deform_conv2d_flops(*args, **kwargs)
