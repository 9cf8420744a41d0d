"""DAT's attention as published, in plain loops: DAT (Xia et al., CVPR 2022) and DAT++ (arXiv:2309.01430).

A reference independent of attnzoo: one image, loops over queries and keys, no grid_sample.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class PublishedAttention:
    """One deformable attention of one version ("v1" or "v2"), with parameters by their published names in float64.

    `factor` None is the unbounded range of the released code: tanh of the position in v1, a clamp in v2.
    """

    version: str
    weights: dict[str, Tensor]
    heads: int
    groups: int
    stride: int
    kernel: int
    factor: float | None
    offsets: bool

    def __call__(self, x: Tensor) -> Tensor:
        """A map (C, H, W) to (C, H, W)."""
        channels, height, width = x.shape
        query = self._project("proj_q", x.flatten(1).T)
        points, key_shape = self._points(query.T.reshape(channels, height, width))
        if self.version == "v2" and not self.offsets:
            pooled = F.avg_pool2d(x[None], self.stride)[0]
            sampled, points = pooled.flatten(1).T, [[(0.0, 0.0)] * pooled[0].numel()] * self.groups
        else:
            sampled = torch.stack(
                [self._sample(x, [group[k] for group in points]) for k in range(math.prod(key_shape))]
            )
        key, value = self._project("proj_k", sampled), self._project("proj_v", sampled)
        dim = channels // self.heads
        output = torch.zeros(height * width, channels, dtype=torch.float64)
        for head in range(self.heads):
            channels_of_head = slice(head * dim, (head + 1) * dim)
            positions = points[head // (self.heads // self.groups)]
            for q in range(height * width):
                scores = []
                for k, (px, py) in enumerate(positions):
                    qx, qy = self._query_position(q % width, width), self._query_position(q // width, height)
                    score = float(query[q, channels_of_head] @ key[k, channels_of_head]) * dim**-0.5
                    scores.append(score + self._bias(head, qx - px, qy - py))
                exps = [math.exp(score - max(scores)) for score in scores]
                for k, exp in enumerate(exps):
                    output[q, channels_of_head] += exp / sum(exps) * value[k, channels_of_head]
        if "rpe_table.weight" in self.weights:  # the depthwise variant
            maps = query.T.reshape(1, channels, height, width)
            position = F.conv2d(
                maps, self.weights["rpe_table.weight"], self.weights["rpe_table.bias"], padding=1, groups=channels
            )
            output = output + position[0].flatten(1).T
        return self._project("proj_out", output).T.reshape(channels, height, width)

    def _project(self, name: str, tokens: Tensor) -> Tensor:
        return tokens @ self.weights[f"{name}.weight"].flatten(1).T + self.weights[f"{name}.bias"]

    def _points(self, query: Tensor) -> tuple[list[list[tuple[float, float]]], tuple[int, int]]:
        """Per group the (x, y) of all keys over [-1, 1], and (h, w) of the key grid."""
        padding = self.kernel // 2 if self.kernel != self.stride else 0
        height, width = ((side + 2 * padding - self.kernel) // self.stride + 1 for side in query.shape[1:])
        offsets = torch.zeros(self.groups, height, width, 2).tolist()  # y, x
        if self.offsets:
            offsets = self._offsets(query, padding).tolist()
        groups = [
            [
                (self._key_position(j, width, group[i][j][1]), self._key_position(i, height, group[i][j][0]))
                for i in range(height)
                for j in range(width)
            ]
            for group in offsets
        ]
        return groups, (height, width)

    def _offsets(self, query: Tensor, padding: int) -> Tensor:
        channels = query.shape[0] // self.groups
        hidden = F.conv2d(
            query.reshape(self.groups, channels, *query.shape[1:]),
            self.weights["conv_offset.0.weight"],
            self.weights["conv_offset.0.bias"],
            stride=self.stride,
            padding=padding,
            groups=channels // self.weights["conv_offset.0.weight"].shape[1],
        ).permute(0, 2, 3, 1)
        norm = (self.weights["conv_offset.1.norm.weight"], self.weights["conv_offset.1.norm.bias"])
        hidden = F.gelu(F.layer_norm(hidden, (channels,), *norm))
        return hidden @ self.weights["conv_offset.3.weight"].flatten(1).T

    def _key_position(self, index: int, count: int, offset: float) -> float:
        unit = count if self.version == "v1" else count - 1
        position = (index + 0.5) / unit * 2 - 1
        if not self.offsets:
            return position
        if self.factor is not None:
            return position + math.tanh(offset) * self.factor / unit
        return math.tanh(position + offset) if self.version == "v1" else min(1.0, max(-1.0, position + offset))

    def _query_position(self, index: int, count: int) -> float:
        return (index + 0.5) / count * 2 - 1 if self.version == "v1" else index / (count - 1) * 2 - 1

    def _sample(self, x: Tensor, points: list[tuple[float, float]]) -> Tensor:
        """All channels of one key, each group's at its own point."""
        maps = x.reshape(self.groups, -1, *x.shape[1:])
        return torch.cat([_bilinear(maps[group], *point) for group, point in enumerate(points)])

    def _bias(self, head: int, dx: float, dy: float) -> float:
        if "rpe_table" in self.weights:
            return float(_bilinear(self.weights["rpe_table"][head : head + 1], dx / 2, dy / 2))
        if "rpe_table.2.weight" not in self.weights:
            return 0.0
        spaced = [math.copysign(math.log2(abs(4 * d) + 1) / math.log2(8), d) for d in (dx, dy)]
        hidden = self.weights["rpe_table.0.weight"] @ torch.tensor(spaced, dtype=torch.float64)
        hidden = (hidden + self.weights["rpe_table.0.bias"]).clamp(min=0)
        return float((self.weights["rpe_table.2.weight"] @ hidden)[head % (self.heads // self.groups)])


def _bilinear(maps: Tensor, x: float, y: float) -> Tensor:
    """Maps (C, h, w) at a point, -1 and 1 being the centres of the outermost pixels; zeros beyond."""
    height, width = maps.shape[1:]
    column, row = (x + 1) / 2 * (width - 1), (y + 1) / 2 * (height - 1)
    value = torch.zeros(maps.shape[0], dtype=torch.float64)
    for i in range(max(0, math.floor(row)), min(height, math.floor(row) + 2)):
        for j in range(max(0, math.floor(column)), min(width, math.floor(column) + 2)):
            value += (1 - abs(row - i)) * (1 - abs(column - j)) * maps[:, i, j]
    return value
