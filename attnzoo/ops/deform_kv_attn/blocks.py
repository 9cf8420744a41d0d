"""Attention to displaced keys in plain PyTorch, a block of queries at a time: what runs where no kernel is compiled.

Memory is bounded: scores, biases and what a perceptron computes on the way exist for one block, and are computed again
in the backward pass.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attnzoo.ops.deform_kv_attn.reference import interpolate, log_spaced, visible

NUMBERS = 2**21  # of the largest intermediate result, over all images and heads, held at a time


@dataclass(frozen=True, eq=False)
class Call:
    """What both kinds of bias have in common; `query_positions` (B, L, Nq, 2), `counts` are the keys per level."""

    query: Tensor
    key: Tensor
    value: Tensor
    query_positions: Tensor
    key_positions: Tensor
    counts: Sequence[int]
    key_padding: Tensor | None
    scale: float

    def displacements(self, rows: slice) -> Iterator[tuple[slice, Tensor]]:
        """Per level: which keys are its own, and the displacements (B, G, q, nk, 2) from them to some queries."""
        key_positions, start = visible(self.key_positions, self.key_padding), 0
        for level, count in enumerate(self.counts):
            keys = slice(start, start + count)
            yield keys, self.query_positions[:, level, None, rows, None] - key_positions[:, :, None, keys]
            start += count


class Bias(ABC):
    """A function of displacements (B, G, q, nk, 2), one per level, with its derivative."""

    width = 1  # numbers per pair and head that it holds on the way

    @abstractmethod
    def forward(self, level: int, displacement: Tensor) -> Tensor:
        """The bias (B, H, q, nk)."""

    @abstractmethod
    def backward(self, level: int, displacement: Tensor, gradient: Tensor) -> Tensor:
        """Gradient by displacement, given that by the bias; those by its parameters are added to `gradients`."""


class TableBias(Bias):
    """Read bilinearly from `tables` (H, Σ Th·Tw), the levels' tables of `shapes` flattened and concatenated."""

    def __init__(self, tables: Tensor, shapes: Sequence[tuple[int, int]]):
        self.gradients = torch.zeros_like(tables)
        self.shapes = shapes
        # What a cell is where the table spans [-1, 1], filled on the device: a copy from the host would wait for it.
        self.per_cell = [torch.cat([tables.new_full((1,), 2 / side) for side in (w, h)]) for h, w in shapes]
        self.tables = tables.split([h * w for h, w in shapes], 1)
        self.table_gradients = self.gradients.split([h * w for h, w in shapes], 1)

    def forward(self, level: int, displacement: Tensor) -> Tensor:
        maps, grid = self._sampled(level, displacement)
        return interpolate(maps, grid).unflatten(0, displacement.shape[:2]).flatten(1, 2)

    def backward(self, level: int, displacement: Tensor, gradient: Tensor) -> Tensor:
        batch, groups = displacement.shape[:2]
        maps, grid = self._sampled(level, displacement)
        grid = grid.nan_to_num(nan=3.0).clamp(-3.0, 3.0)
        slope = gradient.unflatten(1, (groups, -1)).flatten(0, 1)
        by_maps, by_grid = torch.ops.aten.grid_sampler_2d_backward(slope, maps, grid, 0, 0, False, [True, True])
        self.table_gradients[level].add_(by_maps.unflatten(0, (batch, groups)).sum(0).flatten(0, 1).flatten(1))
        return by_grid.unflatten(0, (batch, groups)) * self.per_cell[level]

    def _sampled(self, level: int, displacement: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B·G, H/G, Th, Tw), and a grid (B·G, q, nk, 2) over which they span [-1, 1]."""
        batch, groups = displacement.shape[:2]
        maps = self.tables[level].unflatten(0, (groups, -1)).unflatten(-1, self.shapes[level])
        grid = displacement * self.per_cell[level]
        return maps.expand(batch, *maps.shape).flatten(0, 1), grid.flatten(0, 1)


class MlpBias(Bias):
    """Computed by a perceptron per level; `layers` holds weight and bias of all layers of all `levels` in turn."""

    def __init__(self, layers: Sequence[Tensor], levels: int):
        self.gradients = [torch.zeros_like(tensor) for tensor in layers]
        self.depth = len(layers) // levels
        self.layers = layers
        self.width = sum(weight.shape[0] for weight in layers[: self.depth : 2])

    def forward(self, level: int, displacement: Tensor) -> Tensor:
        return self._activations(level, displacement)[-1].permute(0, 1, 4, 2, 3).flatten(1, 2)

    def backward(self, level: int, displacement: Tensor, gradient: Tensor) -> Tensor:
        *inputs, _ = self._activations(level, displacement)
        slope = gradient.unflatten(1, (displacement.shape[1], -1)).permute(0, 1, 3, 4, 2).flatten(0, -2)
        first = level * self.depth
        for index, given in reversed(list(enumerate(inputs))):
            at = first + 2 * index
            self.gradients[at].addmm_(slope.mT, given.flatten(0, -2))
            self.gradients[at + 1].add_(slope.sum(0))
            slope = slope @ self.layers[at]
            if index:
                slope.masked_fill_(given.flatten(0, -2) <= 0, 0)
        return slope.view_as(displacement) / (1 + displacement.abs())

    def _activations(self, level: int, displacement: Tensor) -> list[Tensor]:
        """The input of every layer, and the output of the last."""
        first = level * self.depth
        activations = [log_spaced(displacement)]
        for at in range(first, first + self.depth, 2):
            output = F.linear(activations[-1], self.layers[at], self.layers[at + 1])
            activations.append(output if at == first + self.depth - 2 else output.relu_())
        return activations


def forward(call: Call, bias: Bias) -> tuple[Tensor, Tensor]:
    """Output (B, H, Nq, D), and the logarithm of each row's sum of exponentials (B, H, Nq), block by block.

    A row without any key has zero output; its logarithm is +inf, so that its weights are zero whatever its scores.
    """
    output = new_by_token(call.query)
    log_sums = call.query.new_empty(call.query.shape[:3])
    value = visible(call.value, call.key_padding)
    for rows in _blocks(call, bias):
        scores = _scores(call, bias, rows)
        log_sum = scores.logsumexp(-1)
        log_sum.masked_fill_(log_sum == -torch.inf, torch.inf)
        log_sums[:, :, rows] = log_sum
        output[:, :, rows] = scores.sub_(log_sum[..., None]).exp_() @ value
    return output, log_sums


def backward(call: Call, bias: Bias, grad_output: Tensor, output: Tensor, log_sums: Tensor) -> tuple[Tensor, ...]:
    """Gradients by query, key, value and positions of queries and of keys; `bias.gradients` holds its own."""
    key, value = visible(call.key, call.key_padding), visible(call.value, call.key_padding)
    by_query = new_by_token(call.query)
    by_key, by_value = new_by_token(key).zero_(), new_by_token(value).zero_()
    by_query_positions = torch.zeros_like(call.query_positions, memory_format=torch.contiguous_format)
    by_key_positions = torch.zeros_like(call.key_positions, memory_format=torch.contiguous_format)
    for rows in _blocks(call, bias):
        weights = _scores(call, bias, rows).sub_(log_sums[:, :, rows, None]).exp_()
        grad = grad_output[:, :, rows]
        by_value += weights.mT @ grad
        mean = (grad * output[:, :, rows]).sum(-1, keepdim=True)
        by_scores = weights.mul_((grad @ value.mT).sub_(mean))
        by_query[:, :, rows] = by_scores @ key * call.scale
        by_key += by_scores.mT @ call.query[:, :, rows] * call.scale
        for level, (keys, displacement) in enumerate(call.displacements(rows)):
            slope = bias.backward(level, displacement, by_scores[..., keys])
            by_query_positions[:, level, rows] = slope.sum((1, 3))
            by_key_positions[:, :, keys] -= slope.sum(2)
    return by_query, by_key, by_value, by_query_positions, by_key_positions


def new_by_token(like: Tensor) -> Tensor:
    """An empty (B, H, N, D) whose memory is ordered as (B, N, H, D): its heads can be joined without a copy."""
    batch, heads, length, dim = like.shape
    return like.new_empty(batch, length, heads, dim).transpose(1, 2)


def _blocks(call: Call, bias: Bias) -> Iterator[slice]:
    """Queries in blocks whose intermediate results hold about NUMBERS numbers."""
    batch, heads, queries = call.query.shape[:3]
    step = max(1, NUMBERS // max(1, batch * heads * call.key.shape[2] * bias.width))
    for start in range(0, queries if batch else 0, step):
        yield slice(start, min(start + step, queries))


def _scores(call: Call, bias: Bias, rows: slice) -> Tensor:
    """Scaled products plus bias (B, H, q, Nk) of some rows, -inf at padding."""
    scores = (call.query[:, :, rows] * call.scale) @ visible(call.key, call.key_padding).mT
    for level, (keys, displacement) in enumerate(call.displacements(rows)):
        scores[..., keys] += bias.forward(level, displacement)
    return scores if call.key_padding is None else scores.masked_fill_(call.key_padding[:, None, None], -torch.inf)
