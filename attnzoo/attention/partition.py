"""Cutting a map into windows, and putting it together again."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attnzoo.geometry import Layout


class Partition:
    """One level (h, w) in windows of `window` x `window` pixels, moved down and right by `shift` pixels.

    The map is filled up to whole windows below and to the right, and its first `shift` rows and columns are moved
    behind its last, so that no window is added. Along an axis on which an image is a single window it is not moved.
    `mask` (B or 1, windows, 1, N, N) is True where a pixel may attend to another of its window: both valid and
    adjoining; None where all may.
    """

    def __init__(self, layout: Layout, window: int, shift: int):
        ((self.height, self.width),) = layout.shapes
        self.window = window
        self.rows, self.columns = (self.height + window - 1) // window, (self.width + window - 1) // window
        self.fill = (self.rows * window - self.height, self.columns * window - self.width)
        self.shifts = self._shifts(layout, shift)
        self.mask = self._mask(layout)

    def _shifts(self, layout: Layout, shift: int) -> Tensor | tuple[int, int]:
        """(y, x) of the map, or (B, 2) where images are padded: each is cut as if it were alone."""
        if layout.padding is None or not shift:
            # min keeps graphs free of conditions on sizes: 0 for one window, shift for more
            return min(shift, (self.rows - 1) * shift), min(shift, (self.columns - 1) * shift)
        valid = (layout.valid_ratios[:, 0] * layout.sizes[0]).round().long()
        return torch.where(valid > self.window, shift, 0).flip(-1)

    def split(self, x: Tensor) -> Tensor:
        """Tokens (B, S, C) as windows (B, windows, N, C)."""
        x = x.unflatten(1, (self.height, self.width))
        if not all(map(_surely_zero, self.fill)):
            x = F.pad(x, (0, 0, 0, self.fill[1], 0, self.fill[0]))
        x = self._roll(x, backwards=False)
        x = x.unflatten(2, (self.columns, self.window)).unflatten(1, (self.rows, self.window))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def merge(self, windows: Tensor) -> Tensor:
        """Windows (B, windows, N, C) as tokens (B, S, C)."""
        x = windows.unflatten(1, (self.rows, self.columns)).unflatten(3, (self.window, self.window))
        x = self._roll(x.transpose(2, 3).flatten(3, 4).flatten(1, 2), backwards=True)
        return x[:, : self.height, : self.width].flatten(1, 2)

    def _roll(self, x: Tensor, backwards: bool) -> Tensor:
        """x (B, rows, columns, C) moved up and left by the shifts, or back."""
        if isinstance(self.shifts, tuple):
            if all(map(_surely_zero, self.shifts)):
                return x
            y, x_shift = self.shifts
            return x.roll((y, x_shift) if backwards else (-y, -x_shift), (1, 2))
        shifts = -self.shifts if backwards else self.shifts
        rows, columns = (
            (torch.arange(size, device=x.device) + shift[:, None]) % size
            for size, shift in zip(x.shape[1:3], shifts.unbind(1), strict=True)
        )
        images = torch.arange(len(x), device=x.device)[:, None, None]
        return x[images, rows[:, :, None], columns[:, None, :]]

    def _mask(self, layout: Layout) -> Tensor | None:
        unmoved = isinstance(self.shifts, tuple) and all(map(_surely_zero, self.shifts))
        if layout.padding is None and unmoved and all(map(_surely_zero, self.fill)):
            return None
        device = layout.sizes.device
        y, x = (torch.arange(size, device=device) for size in (self.height, self.width))
        if isinstance(self.shifts, tuple):
            behind = [(y < self.shifts[0])[None], (x < self.shifts[1])[None]]
        else:
            behind = [y < self.shifts[:, :1], x < self.shifts[:, 1:]]
        # What was moved behind does not adjoin what lies there; 0 is padding.
        region = 1 + behind[0].long()[:, :, None] + 2 * behind[1].long()[:, None, :]
        if layout.padding is not None:
            region = region.masked_fill(layout.padding.unflatten(1, (self.height, self.width)), 0)
        part = self.split(region.flatten(1)[..., None])[..., 0]
        return ((part[..., :, None] == part[..., None, :]) & (part > 0)[..., None, :])[:, :, None]


def _surely_zero(size: int) -> bool:
    """Whether a size is 0; in a graph of dynamic sizes only if it always is, so that the graph fits all sizes."""
    if not torch.compiler.is_compiling():
        return size == 0
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(size == 0)
