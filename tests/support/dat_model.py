"""Whole DAT and DAT++ models as published, one image at a time: a reference independent of attnzoo.

Blocks, windows, neighborhoods and convolutions around the attention of `support.dat`, in plain formulas over a state
dict with the published names (Xia et al., CVPR 2022, section 3.3 and table 1; arXiv:2309.01430; Hassani et al., CVPR
2023).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from support.dat import PublishedAttention
from support.dat_state import Sizes

Pairs = Callable[[int, int], int]


class PublishedModel:
    """The classifier of a state dict in float64; DAT++ if its patches overlap."""

    def __init__(self, sizes: Sizes, state: dict[str, Tensor]):
        self.sizes, self.state = sizes, state
        self.plus = "patch_proj.3.weight" in state

    def __call__(self, image: Tensor) -> Tensor:
        """An image (3, H, W) to logits."""
        x = self._embed(image)
        for stage, depth in enumerate(self.sizes.depths):
            if stage:
                x = self._conv(f"down_projs.{stage - 1}.0", x, stride=2, padding=int(self.plus))
                x = self._norm(f"down_projs.{stage - 1}.1", x)
            for block in range(depth):
                x = self._block(stage, block, x)
        pooled = self._norm("cls_norm", x).mean((1, 2))
        return self.state["cls_head.weight"] @ pooled + self.state["cls_head.bias"]

    def _embed(self, image: Tensor) -> Tensor:
        if not self.plus:
            return self._norm("patch_proj.1", self._conv("patch_proj.0", image, stride=4))
        x = F.gelu(self._norm("patch_proj.1", self._conv("patch_proj.0", image, stride=2, padding=1)))
        return self._norm("patch_proj.4", self._conv("patch_proj.3", x, stride=2, padding=1))

    def _block(self, stage: int, block: int, x: Tensor) -> Tensor:
        name, norms = f"stages.{stage}", f"stages.{stage}.layer_norms"
        if self.plus:
            x = x + self._depthwise(f"{name}.local_perception_units.{block}", x)
        x = x + self._attention(stage, block, self._norm(f"{norms}.{2 * block}", x))
        hidden = self._norm(f"{norms}.{2 * block + 1}", x)
        mlp = f"{name}.mlps.{block}"
        if not self.plus:
            return x + self._linear(f"{mlp}.chunk.linear2", F.gelu(self._linear(f"{mlp}.chunk.linear1", hidden)))
        hidden = self._linear(f"{mlp}.linear1.0", hidden)
        hidden = F.gelu(hidden + self._depthwise(f"{mlp}.dwc", hidden))
        return x + self._linear(f"{mlp}.linear2.0", hidden)

    def _attention(self, stage: int, block: int, x: Tensor) -> Tensor:
        name = f"stages.{stage}.attns.{block}"
        weights = {key.removeprefix(f"{name}."): tensor for key, tensor in self.state.items() if key.startswith(name)}
        if "rpe_table" in weights:
            stride = 8 // 2**stage if self.plus else 1
            version, factor = ("v2", None) if self.plus else ("v1", 2.0)
            heads, groups = self.sizes.heads(stage), self.sizes.groups[stage]
            return PublishedAttention(version, weights, heads, groups, stride, 9 - 2 * stage, factor, True)(x)
        side, kernel = x.shape[1], self.sizes.window
        if self.plus:
            return self._local(name, x, "qkv", "proj", weights["rpb"].flatten(1), _neighbors(side, kernel))
        shift = math.ceil(kernel / 2) if block % 2 else 0
        table = weights["relative_position_bias_table"].T
        return self._local(name, x, "proj_qkv", "proj_out", table, _windows(side, kernel, shift))

    def _local(self, name: str, x: Tensor, qkv: str, proj: str, table: Tensor, entry: Pairs) -> Tensor:
        """Attention of pixels to those for which `entry` gives an index into the table (heads, entries), not -1."""
        channels, height, width = x.shape
        heads, pixels = len(table), height * width
        q, k, v = self._linear(f"{name}.{qkv}", x).reshape(3, heads, channels // heads, pixels)
        scores = torch.einsum("hdq,hdk->hqk", q, k) * (channels // heads) ** -0.5
        index = torch.tensor([[entry(i, j) for j in range(pixels)] for i in range(pixels)])
        scores = (scores + table[:, index]).masked_fill(index < 0, -torch.inf)
        output = torch.einsum("hqk,hdk->hdq", scores.softmax(-1), v)
        return self._linear(f"{name}.{proj}", output.reshape(channels, height, width))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return torch.einsum("oc,chw->ohw", weight.flatten(1), x) + bias[:, None, None]

    def _conv(self, name: str, x: Tensor, stride: int, padding: int = 0) -> Tensor:
        return F.conv2d(x[None], self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), stride, padding)[0]

    def _depthwise(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.conv2d(x[None], weight, bias, padding=1, groups=len(x))[0]

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.state[f"{name}.norm.weight"], self.state[f"{name}.norm.bias"]
        return F.layer_norm(x.permute(1, 2, 0), (len(x),), weight, bias).permute(2, 0, 1)


def _windows(side: int, window: int, shift: int) -> Pairs:
    """Pixels of one window, after the map has been rolled up and left by `shift`, that were neighbours before."""

    def axis(pixel: int) -> tuple[int, int, bool]:
        moved = (pixel - shift) % side
        return moved // window, moved % window, pixel < shift

    def entry(i: int, j: int) -> int:
        rows, columns = (axis(i // side), axis(j // side)), (axis(i % side), axis(j % side))
        if any(a[0] != b[0] or a[2] != b[2] for a, b in (rows, columns)):
            return -1
        dy, dx = (a[1] - b[1] + window - 1 for a, b in (rows, columns))
        return dy * (2 * window - 1) + dx

    return entry


def _neighbors(side: int, kernel: int) -> Pairs:
    """The kernel x kernel pixels nearest to each, none of them off the map."""

    def axis(query: int, pixel: int) -> int | None:
        first = min(max(query - kernel // 2, 0), side - kernel)
        return pixel - query + kernel - 1 if first <= pixel < first + kernel else None

    def entry(i: int, j: int) -> int:
        dy, dx = axis(i // side, j // side), axis(i % side, j % side)
        return -1 if dy is None or dx is None else dy * (2 * kernel - 1) + dx

    return entry
