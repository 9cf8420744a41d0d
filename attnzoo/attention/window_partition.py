"""Window partition and its inverse."""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from attnzoo.attention.base import statically_true
from attnzoo.geometry import Layout


class WindowPartition:
    """Partition of one level (h, w) into windows of `window` x `window` pixels, shifted by `shift` pixels.

    The map is padded at the bottom and right to a multiple of `window`, then cyclically shifted up and left. There is
    no shift along an axis with a single window. `mask` (B or 1, windows, 1, N, N) is True where attention is allowed:
    both pixels valid and in the same region before the shift. It is None if all may attend to all.
    """

    def __init__(self, layout: Layout, window: int, shift: int):
        ((self.height, self.width),) = layout.spatial_shapes
        self.window = window
        self.rows, self.columns = (self.height + window - 1) // window, (self.width + window - 1) // window
        self.pad = (self.rows * window - self.height, self.columns * window - self.width)
        self.shifts = self._shifts(layout, shift)
        self.mask = self._mask(layout)

    def _shifts(self, layout: Layout, shift: int) -> Tensor | tuple[int, int]:
        """(y, x) of the map; (B, 2) where images are padded: each is partitioned independently of its padding."""
        if layout.padding_mask is None or not shift:
            # min avoids data-dependent control flow under torch.compile: 0 for one window, shift for more
            return min(shift, (self.rows - 1) * shift), min(shift, (self.columns - 1) * shift)
        return torch.where(layout.valid_sizes[:, 0] > self.window, shift, 0).flip(-1)

    def partition(self, x: Tensor) -> Tensor:
        """Tokens (B, S, C) as windows (B, windows, N, C)."""
        x = x.unflatten(1, (self.height, self.width))
        if not all(map(_statically_zero, self.pad)):
            x = F.pad(x, (0, 0, 0, self.pad[1], 0, self.pad[0]))
        x = self._roll(x, reverse=False)
        x = rearrange(x, "b (y h) (x w) c -> b y x h w c", h=self.window, w=self.window)
        return _copy(x).flatten(3, 4).flatten(1, 2)

    def reverse(self, windows: Tensor) -> Tensor:
        """Windows (B, windows, N, C) as tokens (B, S, C)."""
        sizes = {"y": self.rows, "x": self.columns, "h": self.window, "w": self.window}
        x = _copy(rearrange(windows, "b (y x) (h w) c -> b y h x w c", **sizes))
        x = self._roll(x.flatten(3, 4).flatten(1, 2), reverse=True)
        if not all(map(_statically_zero, self.pad)):
            # a slice would be flattened as a view of maps without padding: torch.export would keep that of its example
            x = F.pad(x, (0, 0, 0, -self.pad[1], 0, -self.pad[0]))
        return x.flatten(1, 2)

    def reverse_heads(self, x: Tensor) -> Tensor:
        """Outputs or weights (B, windows, M, N, D) as (B, S, M, D)."""
        merged = self.reverse(rearrange(x, "b g m n d -> b g n (m d)"))
        return rearrange(merged, "b s (m d) -> b s m d", m=x.shape[2])

    def key_locations(self, keys: Tensor) -> Tensor:
        """Locations of the keys of each window, (B, windows, K, 2), for every token: (B, S, K, 2)."""
        per_query = repeat(keys, "b g k xy -> b g n (k xy)", n=self.window**2)
        return rearrange(self.reverse(per_query), "b s (k xy) -> b s k xy", xy=2)

    def _roll(self, x: Tensor, reverse: bool) -> Tensor:
        """x (B, rows, columns, C) moved up and left by the shifts, or back."""
        if isinstance(self.shifts, tuple):
            if all(map(_statically_zero, self.shifts)):
                return x
            if not all(isinstance(shift, int) for shift in self.shifts):  # ONNX has no roll by a dynamic shift
                for axis, shift in enumerate(self.shifts, start=1):
                    size = x.shape[axis]
                    index = torch.arange(size, device=x.device) + (-shift if reverse else shift)
                    x = x.index_select(axis, _wrapped(index, size))
                return x
            y, x_shift = self.shifts
            return x.roll((y, x_shift) if reverse else (-y, -x_shift), (1, 2))
        shifts = -self.shifts if reverse else self.shifts
        rows, columns = (
            _wrapped(torch.arange(size, device=x.device) + shift[:, None], size)
            for size, shift in zip(x.shape[1:3], shifts.unbind(1), strict=True)
        )
        batch_index = torch.arange(x.shape[0], device=x.device)[:, None, None]
        return x[batch_index, rows[:, :, None], columns[:, None, :]]

    def _mask(self, layout: Layout) -> Tensor | None:
        not_shifted = isinstance(self.shifts, tuple) and all(map(_statically_zero, self.shifts))
        if layout.padding_mask is None and not_shifted and all(map(_statically_zero, self.pad)):
            return None
        device = layout.sizes_wh.device
        y, x = (torch.arange(size, device=device) for size in (self.height, self.width))
        if isinstance(self.shifts, tuple):
            wrapped = [(y < self.shifts[0])[None], (x < self.shifts[1])[None]]
        else:
            wrapped = [y < self.shifts[:, :1], x < self.shifts[:, 1:]]
        # Wrapped rows and columns are separate regions (Swin's attention mask); region 0 is padding.
        region = 1 + wrapped[0].long()[:, :, None] + 2 * wrapped[1].long()[:, None, :]
        if layout.padding_mask is not None:
            region = region.masked_fill(layout.padding_mask.unflatten(1, (self.height, self.width)), 0)
        regions = self.partition(region.flatten(1)[..., None])[..., 0]
        return ((regions[..., :, None] == regions[..., None, :]) & (regions > 0)[..., None, :])[:, :, None]


def _copy(x: Tensor) -> Tensor:
    """A contiguous copy; `reshape` first asks whether it is needed, and torch.export keeps its example's answer."""
    return x.clone(memory_format=torch.contiguous_format)


def _wrapped(index: Tensor, size: int) -> Tensor:
    """index % size, for −size <= index < 2 size; ONNX has no remainder by a dynamic size."""
    index = torch.where(index < 0, index + size, index)
    return torch.where(index < size, index, index - size)


def _statically_zero(size: int) -> bool:
    return statically_true(size == 0)
