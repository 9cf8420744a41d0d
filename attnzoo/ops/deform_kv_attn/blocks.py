"""Attention to sampled keys in plain PyTorch, one block of queries at a time: the fallback without a compiled kernel.

Memory is bounded: scores, biases and MLP activations exist for one block, and are recomputed in the backward pass.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attnzoo.ops.deform_kv_attn.reference import grid_sample_zeros, log_spaced, zero_masked_keys

MAX_BLOCK_ELEMENTS = 2**21  # of the largest intermediate tensor of a block, over all images and heads


@dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs shared by both biases; `query_positions` (B, L, Nq, 2), `key_counts` per level."""

    query: Tensor
    key: Tensor
    value: Tensor
    query_positions: Tensor
    key_positions: Tensor
    key_counts: Sequence[int]
    key_padding: Tensor | None
    scale: float

    def displacements(self, block: slice) -> Iterator[tuple[slice, Tensor]]:
        """Per level: the slice of its keys, and their displacements (B, G, q, nk, 2) to the queries of a block."""
        key_positions, start = zero_masked_keys(self.key_positions, self.key_padding), 0
        for level, count in enumerate(self.key_counts):
            keys = slice(start, start + count)
            yield keys, self.query_positions[:, level, None, block, None] - key_positions[:, :, None, keys]
            start += count


class Bias(ABC):
    """A relative position bias: per level, a function of displacements (B, G, q, nk, 2)."""

    elements_per_pair = 1  # of the largest intermediate tensor, per query-key pair and head

    @abstractmethod
    def forward(self, level: int, displacement: Tensor) -> Tensor:
        """The bias (B, H, q, nk)."""

    @abstractmethod
    def backward(self, level: int, displacement: Tensor, grad_bias: Tensor) -> Tensor:
        """The gradient of the displacement; gradients of the parameters are accumulated in `gradients`."""


class TableBias(Bias):
    """Sampled bilinearly from `tables` (H, Σ Th·Tw), the tables of the levels flattened and concatenated."""

    def __init__(self, tables: Tensor, shapes: Sequence[tuple[int, int]]):
        self.gradients = torch.zeros_like(tables)
        self.shapes = shapes
        # Size of a cell where the table spans [-1, 1]; created on the device to avoid a synchronisation.
        self.cell_sizes = [torch.cat([tables.new_full((1,), 2 / size) for size in (w, h)]) for h, w in shapes]
        self.tables = tables.split([h * w for h, w in shapes], 1)
        self.table_gradients = self.gradients.split([h * w for h, w in shapes], 1)

    def forward(self, level: int, displacement: Tensor) -> Tensor:
        maps, grid = self._maps_and_grid(level, displacement)
        return grid_sample_zeros(maps, grid).unflatten(0, displacement.shape[:2]).flatten(1, 2)

    def backward(self, level: int, displacement: Tensor, grad_bias: Tensor) -> Tensor:
        batch, groups = displacement.shape[:2]
        maps, grid = self._maps_and_grid(level, displacement)
        grid = grid.nan_to_num(nan=3.0).clamp(-3.0, 3.0)
        grad_output = grad_bias.unflatten(1, (groups, -1)).flatten(0, 1)
        grad_maps, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad_output, maps, grid, 0, 0, False, [True, True]
        )
        self.table_gradients[level].add_(grad_maps.unflatten(0, (batch, groups)).sum(0).flatten(0, 1).flatten(1))
        return grad_grid.unflatten(0, (batch, groups)) * self.cell_sizes[level]

    def _maps_and_grid(self, level: int, displacement: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B·G, H/G, Th, Tw) and a grid (B·G, q, nk, 2) in [-1, 1]: the arguments of grid_sample."""
        batch, groups = displacement.shape[:2]
        maps = self.tables[level].unflatten(0, (groups, -1)).unflatten(-1, self.shapes[level])
        grid = displacement * self.cell_sizes[level]
        return maps.expand(batch, *maps.shape).flatten(0, 1), grid.flatten(0, 1)


class MlpBias(Bias):
    """Computed by one MLP per level; `layers` are weight and bias of every layer, level by level."""

    def __init__(self, layers: Sequence[Tensor], num_levels: int):
        self.gradients = [torch.zeros_like(tensor) for tensor in layers]
        self.tensors_per_level = len(layers) // num_levels
        self.layers = layers
        self.elements_per_pair = sum(weight.shape[0] for weight in layers[: self.tensors_per_level : 2])

    def forward(self, level: int, displacement: Tensor) -> Tensor:
        return self._activations(level, displacement)[-1].permute(0, 1, 4, 2, 3).flatten(1, 2)

    def backward(self, level: int, displacement: Tensor, grad_bias: Tensor) -> Tensor:
        *inputs, _ = self._activations(level, displacement)
        grad = grad_bias.unflatten(1, (displacement.shape[1], -1)).permute(0, 1, 3, 4, 2).flatten(0, -2)
        start = level * self.tensors_per_level
        for layer, layer_input in reversed(list(enumerate(inputs))):
            weight = start + 2 * layer
            self.gradients[weight].addmm_(grad.mT, layer_input.flatten(0, -2))
            self.gradients[weight + 1].add_(grad.sum(0))
            grad = grad @ self.layers[weight]
            if layer:
                grad.masked_fill_(layer_input.flatten(0, -2) <= 0, 0)
        return grad.view_as(displacement) / (1 + displacement.abs())

    def _activations(self, level: int, displacement: Tensor) -> list[Tensor]:
        """The input of every layer, and the output of the last."""
        start, end = level * self.tensors_per_level, (level + 1) * self.tensors_per_level
        activations = [log_spaced(displacement)]
        for weight in range(start, end, 2):
            output = F.linear(activations[-1], self.layers[weight], self.layers[weight + 1])
            activations.append(output if weight == end - 2 else output.relu_())
        return activations


def forward(inputs: Inputs, bias: Bias) -> tuple[Tensor, Tensor]:
    """Output (B, H, Nq, D), and the logsumexp (B, H, Nq) of each row of scores.

    For fully masked rows the output is 0 and the logsumexp +inf, so that the recomputed weights are 0.
    """
    output = new_token_major(inputs.query)
    logsumexp = inputs.query.new_empty(inputs.query.shape[:3])
    value = zero_masked_keys(inputs.value, inputs.key_padding)
    for block in _query_blocks(inputs, bias):
        scores = _scores(inputs, bias, block)
        block_logsumexp = scores.logsumexp(-1)
        block_logsumexp.masked_fill_(block_logsumexp == -torch.inf, torch.inf)
        logsumexp[:, :, block] = block_logsumexp
        output[:, :, block] = scores.sub_(block_logsumexp[..., None]).exp_() @ value
    return output, logsumexp


def backward(inputs: Inputs, bias: Bias, grad_output: Tensor, output: Tensor, logsumexp: Tensor) -> tuple[Tensor, ...]:
    """Gradients of query, key, value, query and key positions; those of the bias are in `bias.gradients`."""
    key, value = (zero_masked_keys(tensor, inputs.key_padding) for tensor in (inputs.key, inputs.value))
    grad_query = new_token_major(inputs.query)
    grad_key, grad_value = new_token_major(key).zero_(), new_token_major(value).zero_()
    grad_query_positions = torch.zeros_like(inputs.query_positions, memory_format=torch.contiguous_format)
    grad_key_positions = torch.zeros_like(inputs.key_positions, memory_format=torch.contiguous_format)
    for block in _query_blocks(inputs, bias):
        weights = _scores(inputs, bias, block).sub_(logsumexp[:, :, block, None]).exp_()
        grad = grad_output[:, :, block]
        grad_value += weights.mT @ grad
        delta = (grad * output[:, :, block]).sum(-1, keepdim=True)
        grad_scores = weights.mul_((grad @ value.mT).sub_(delta))
        grad_query[:, :, block] = grad_scores @ key * inputs.scale
        grad_key += grad_scores.mT @ inputs.query[:, :, block] * inputs.scale
        for level, (keys, displacement) in enumerate(inputs.displacements(block)):
            grad_displacement = bias.backward(level, displacement, grad_scores[..., keys])
            grad_query_positions[:, level, block] = grad_displacement.sum((1, 3))
            grad_key_positions[:, :, keys] -= grad_displacement.sum(2)
    return grad_query, grad_key, grad_value, grad_query_positions, grad_key_positions


def new_token_major(like: Tensor) -> Tensor:
    """An empty (B, H, N, D) tensor with memory order (B, N, H, D): flattening its heads is a view."""
    batch, heads, tokens, dim = like.shape
    return like.new_empty(batch, tokens, heads, dim).transpose(1, 2)


def _query_blocks(inputs: Inputs, bias: Bias) -> Iterator[slice]:
    """Blocks of queries whose intermediate tensors have about MAX_BLOCK_ELEMENTS elements."""
    batch, heads, queries = inputs.query.shape[:3]
    elements_per_query = batch * heads * inputs.key.shape[2] * bias.elements_per_pair
    size = max(1, MAX_BLOCK_ELEMENTS // max(1, elements_per_query))
    for start in range(0, queries if batch else 0, size):
        yield slice(start, min(start + size, queries))


def _scores(inputs: Inputs, bias: Bias, block: slice) -> Tensor:
    """Scaled dot products plus bias (B, H, q, Nk) of a block, -inf at masked keys."""
    scores = (inputs.query[:, :, block] * inputs.scale) @ zero_masked_keys(inputs.key, inputs.key_padding).mT
    for level, (keys, displacement) in enumerate(inputs.displacements(block)):
        scores[..., keys] += bias.forward(level, displacement)
    if inputs.key_padding is None:
        return scores
    return scores.masked_fill_(inputs.key_padding[:, None, None], -torch.inf)
