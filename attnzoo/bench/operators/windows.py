"""Window and neighborhood attention after their projections, bias included: cases, reference, implementations."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo.attention import build
from attnzoo.attention.neighborhood import NeighborhoodAttention
from attnzoo.attention.qkv import QkvAttention
from attnzoo.attention.window_partition import WindowPartition
from attnzoo.bench.operators.base import BUILD, OURS, Operator, OpFn, check_flex_attention, forward_backward, in_float32
from attnzoo.geometry import Layout, Role, Slot

SIZE = 7  # of windows and neighborhoods, in pixels
SPAN = 2 * SIZE - 1  # displacements along an axis
Pairs = tuple[Tensor, Tensor]
"""Entry of the table for each query and key, and whether the key is attended; both (S, S)."""


@dataclass(frozen=True)
class Case:
    """A map; windows are shifted by `shift` pixels."""

    name: str
    height: int
    width: int
    heads: int
    batch: int = 1
    shift: int = 0
    head_dim: int = 32

    @property
    def tokens(self) -> int:
        return self.height * self.width

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    def layout(self, device: torch.device) -> Layout:
        return Layout.unpadded(((self.height, self.width),), self.batch, device)

    def __str__(self) -> str:
        shift = f", shift {self.shift}" if self.shift else ""
        return f"B {self.batch}, {self.height}x{self.width}, M {self.heads}, D {self.head_dim}, size {SIZE}{shift}"


def inputs(case: Case, pattern: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Query, key and value (B, S, C), and the table (M, (2 · SIZE - 1)²) of the bias."""
    g = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, case.batch, case.tokens, case.dim, generator=g).to(device, dtype)
    table = torch.randn(case.heads, SPAN**2, generator=g).to(device, dtype)
    return (*tokens.unbind(0), table)


def output_shape(case: Case) -> tuple[int, ...]:
    """(B, S, C)."""
    return case.batch, case.tokens, case.dim


def macs(case: Case) -> int:
    """Of queries with their keys, and of weights with values."""
    return 2 * case.batch * case.tokens * min(SIZE, case.height) * min(SIZE, case.width) * case.dim


def _pixels(case: Case) -> Tensor:
    """Row and column of each token, (S, 2)."""
    token = torch.arange(case.tokens)
    return torch.stack([token // case.width, token % case.width], 1)


def window_pairs(case: Case) -> Pairs:
    """Pixels of one window before the shift: those that wrap around are in windows of their own."""
    pixels = _pixels(case)
    shifts = torch.tensor([case.shift if size > SIZE else 0 for size in (case.height, case.width)])
    window = (pixels - shifts).div(SIZE, rounding_mode="floor")
    relative = pixels[:, None] - pixels + SIZE - 1  # of the query to the key
    return _entries(relative), (window[:, None] == window).all(-1)


def neighborhood_pairs(case: Case) -> Pairs:
    """The SIZE x SIZE pixels around each, shifted inwards at the borders."""
    pixels = _pixels(case)
    sizes = torch.tensor([case.height, case.width])
    first = (pixels - SIZE // 2).clamp(min=0).minimum((sizes - SIZE).clamp(min=0))[:, None]
    attended = ((pixels >= first) & (pixels < first + SIZE)).all(-1)
    return _entries(pixels - pixels[:, None] + SIZE - 1), attended


def _entries(relative: Tensor) -> Tensor:
    rows, columns = relative.clamp(0, SPAN - 1).unbind(-1)
    return rows * SPAN + columns


def _split(x: Tensor, case: Case) -> Tensor:
    """(…, N, C) as (…, M, N, D)."""
    return x.unflatten(-1, (case.heads, -1)).transpose(-3, -2)


def by_pairs(pairs: Callable[[Case], Pairs]) -> Callable[[Case, tuple[Tensor, ...], Tensor], list[Tensor]]:
    """Output and gradients in float64 from the scores of all pairs of pixels, one image and head at a time."""

    def reference(case: Case, tensors: tuple[Tensor, ...], grad_output: Tensor) -> list[Tensor]:
        entries, attended = (x.to(grad_output.device) for x in pairs(case))

        def attend(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Tensor:
            scores = query @ key.T * case.head_dim**-0.5 + table[entries]
            return scores.masked_fill(~attended, -torch.inf).softmax(-1) @ value

        results = [torch.zeros_like(t, dtype=torch.float64) for t in (grad_output, *tensors)]
        for image in range(case.batch):
            for head in range(case.heads):
                channels = slice(head * case.head_dim, (head + 1) * case.head_dim)
                leaves = [t[image, :, channels].double() for t in (*tensors[:3], grad_output)]
                output, *grads = forward_backward(attend, (*leaves[:3], tensors[3][head].double()), leaves[3])
                for total, part in zip(results[:4], (output, *grads[:3]), strict=True):
                    total[image, :, channels] = part
                results[4][head] += grads[3]
        return results

    return reference


def _operator(name: str, cases: list[Case], pairs: Callable[[Case], Pairs]) -> Operator:
    return Operator(
        name,
        cases={case.name: case for case in cases},
        cpu_cases=tuple(case.name for case in cases),
        patterns=("random",),
        tensors=("query", "key", "value", "table"),
        inputs=inputs,
        output_shape=output_shape,
        reference=by_pairs(pairs),
        macs=macs,
        unit="matrix",
    )


WINDOW_ATTN = _operator(
    "window_attn",
    [
        Case("swin-t-stage-1", 56, 56, 3),
        Case("swin-t-stage-1-shifted", 56, 56, 3, shift=3),
        Case("swin-t-stage-1-shifted-b4", 56, 56, 3, batch=4, shift=3),
        Case("swin-t-stage-3-shifted-b4", 14, 14, 12, batch=4, shift=3),
        Case("detection-50x67", 50, 67, 6),
    ],
    window_pairs,
)
NEIGHBORHOOD_ATTN = _operator(
    "neighborhood_attn",
    [
        Case("dat-pp-t-stage-1", 56, 56, 2),
        Case("dat-pp-t-stage-1-b4", 56, 56, 2, batch=4),
        Case("dat-pp-t-stage-2-b4", 28, 28, 4, batch=4),
        Case("detection-50x67", 50, 67, 4),
    ],
    neighborhood_pairs,
)


def by_hand(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """Matrix products and softmax."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ v


def by_sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """scaled_dot_product_attention; the mask is part of the bias."""
    if mask is not None:
        bias = bias.masked_fill(~mask, torch.finfo(bias.dtype).min)
    if bias.dim() == q.dim():
        bias = bias.expand(*q.shape[:2], *bias.shape[2:]).flatten(0, 1)
    output = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), bias)
    return output.unflatten(0, q.shape[:2])


def _in_windows(attend: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor], case: Case) -> OpFn:
    coords = torch.arange(SIZE)
    relative = (coords[:, None] - coords)[:, None, :, None], (coords[:, None] - coords)[:, None, :]
    entries = ((relative[0] + SIZE - 1) * SPAN + relative[1] + SIZE - 1).reshape(SIZE**2, SIZE**2)

    def function(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Tensor:
        windows = WindowPartition(case.layout(query.device), SIZE, case.shift)
        q, k, v = (_split(windows.partition(x), case) for x in (query, key, value))
        return windows.reverse_heads(attend(q, k, v, table[:, entries], windows.mask)).flatten(2)

    return function


@WINDOW_ATTN.implementation(OURS, install=BUILD, package="attnzoo")
def _window(case: Case, device: torch.device) -> OpFn:
    """`window` of the tokens of a map."""
    attention = build("window", Slot(case.dim, case.heads, role=Role.STAGE))
    assert isinstance(attention, QkvAttention)
    return _in_windows(lambda *tensors: attention.attend(*tensors, zero_if_all_masked=False)[0], case)


@WINDOW_ATTN.implementation("matmul", install="part of attnzoo", package="attnzoo")
def _window_by_hand(case: Case, device: torch.device) -> OpFn:
    """Matrix products and softmax. Half precision is upcast to float32."""
    return in_float32(_in_windows(by_hand, case))


@WINDOW_ATTN.implementation("sdpa", install="part of torch", package="torch")
def _window_by_sdpa(case: Case, device: torch.device) -> OpFn:
    """scaled_dot_product_attention with an additive mask. Half precision is upcast to float32."""
    return in_float32(_in_windows(by_sdpa, case))


class _Level(nn.Module):
    """Neighborhood attention of one level to projected tokens, for `torch.func.functional_call`."""

    def __init__(self, case: Case):
        super().__init__()
        attention = build("neighborhood", Slot(case.dim, case.heads, role=Role.STAGE), kernel=SIZE)
        assert isinstance(attention, NeighborhoodAttention)
        self.attention, self.case = attention, case

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.attention.attend_level(query, key, value, self.case.layout(query.device), [])


@NEIGHBORHOOD_ATTN.implementation(OURS, install=BUILD, package="attnzoo")
def _neighborhood(case: Case, device: torch.device) -> OpFn:
    """`neighborhood`: tiles of queries; scaled_dot_product_attention for inference, by hand in training.

    The table is in float32 or higher, as under autocast.
    """
    level = _Level(case)

    def function(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Tensor:
        table = table.to(torch.promote_types(table.dtype, torch.float32)).unflatten(1, (SPAN, SPAN))
        output: Tensor = torch.func.functional_call(level, {"attention.rpb": table}, (query, key, value))
        return output

    return function


@NEIGHBORHOOD_ATTN.implementation("unfold-sdpa", install="part of torch", package="torch")
def _neighborhood_by_unfold(case: Case, device: torch.device) -> OpFn:
    """The keys and values of every query gathered, SIZE² times the map, then scaled_dot_product_attention."""
    entries, attended = neighborhood_pairs(case)
    keys = attended.nonzero()[:, 1].view(case.tokens, -1)
    entries = entries.gather(1, keys)

    def function(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Tensor:
        q = query.unflatten(-1, (case.heads, 1, -1))  # (B, S, M, 1, D)
        k, v = (_split(x[:, keys.flatten()].unflatten(1, keys.shape), case) for x in (key, value))
        bias = table[:, entries].transpose(0, 1)[None, :, :, None]  # (1, S, M, 1, SIZE²)
        return by_sdpa(q, k, v, bias, None).flatten(2)

    return in_float32(function)


def _flex(pairs: Callable[[Case], Pairs]) -> Callable[[Case, torch.device], OpFn]:
    def factory(case: Case, device: torch.device) -> OpFn:
        """torch's flex_attention, compiled, with a block mask and the bias as its score_mod. Half is upcast."""
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        entries, attended = (x.to(device) for x in pairs(case))
        block_mask = create_block_mask(
            lambda image, head, query, key: attended[query, key], None, None, case.tokens, case.tokens, device=device
        )
        compiled = torch.compile(flex_attention, dynamic=False)

        def function(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Tensor:
            def score_mod(score: Tensor, image: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
                return score + table[head, entries[row, column]]

            check_flex_attention(query)
            q, k, v = (_split(x, case) for x in (query, key, value))
            output: Tensor = compiled(q, k, v, score_mod=score_mod, block_mask=block_mask)
            return output.transpose(1, 2).flatten(2)

        return in_float32(function)

    return factory


WINDOW_ATTN.implementation("flex_attention", install="part of torch", package="torch", is_compiled=True)(
    _flex(window_pairs)
)
NEIGHBORHOOD_ATTN.implementation("flex_attention", install="part of torch", package="torch", is_compiled=True)(
    _flex(neighborhood_pairs)
)
