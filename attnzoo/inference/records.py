"""Records of the attentions of a model on one image, as arrays that can be drawn and summarised."""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from attnzoo.attention import Attention, record
from attnzoo.attention.dat import DeformableKeyValueAttention
from attnzoo.attention.deformable import DeformableAttention, MultiScaleDeformableAttention
from attnzoo.geometry import Layout, Pyramid, Queries, Role

Array = npt.NDArray[Any]
T = TypeVar("T", Tensor, Array)

MAX_WEIGHTS = 2**25  # of one attention: 128 MiB, and several times that while they are computed


class Kind(StrEnum):
    """What a query attends to, which decides how it is drawn."""

    POINTS = "sampling_points"  # points of its own, per head and level
    GRID = "deformed_grid"  # sampled keys that all queries share
    MAP = "attention_map"  # all tokens
    WINDOW = "windows"  # a small set of tokens of its own


@dataclass(frozen=True, eq=False)
class AttentionRecord:
    """One attention on one image that is not padded; M heads, L levels, P points, Q queries.

    - `name`: where it is, such as "decoder.1" or "stage3.0", from 0 but for the stage
    - `weights`: (Q, M, L, P) of sampling points, (M, Q, K) of a grid or map, (Q, M, K) of windows
    - `locations`: (Q, M, L, P, 2), (K, G, 2) or (Q, K, 2), x before y in [0, 1] of the image; None of a map
    - `references`: (Q, 2) points or (Q, 4) boxes (cx, cy, w, h) in [0, 1] of the image; None if there are none
    - `map_sizes`: (h, w) of the levels attended
    - `grids`: of each level, the (h, w, 2) locations of the keys of a grid before they are moved; else None
    - `query_sizes`: (h, w) of the levels whose tokens are the queries; None of object queries
    - `bias`: (M, Q, K), what a position bias added to the scores of a grid or map; else None
    - `initial_offsets`: (M, L, P, 2), those of sampling points before training, in pixels of each level; else None
    """

    name: str
    role: Role
    weights: Array
    locations: Array | None
    references: Array | None
    map_sizes: tuple[tuple[int, int], ...]
    grids: tuple[Array, ...] | None = None
    query_sizes: tuple[tuple[int, int], ...] | None = None
    bias: Array | None = None
    initial_offsets: Array | None = None

    @property
    def kind(self) -> Kind | None:
        """How to draw it, from the shapes of weights and locations; None if they are none that are known."""
        return kind_of(self.weights, self.locations, sum(h * w for h, w in self.map_sizes))

    @property
    def on_grid(self) -> bool:
        """Whether the queries are tokens of maps."""
        return self.query_sizes is not None

    @property
    def num_queries(self) -> int:
        return self.weights.shape[1 if self.kind in (Kind.GRID, Kind.MAP) else 0]

    @property
    def num_heads(self) -> int:
        return self.weights.shape[0 if self.kind in (Kind.GRID, Kind.MAP) else 1]

    @property
    def weights_per_query(self) -> Array:
        """The weights as (Q, M, K), with a sum of 1 over K: a convolution weighs each of its samples with up to 1."""
        if self.kind in (Kind.GRID, Kind.MAP):
            return self.weights.swapaxes(0, 1)
        weights = self.weights.reshape(*self.weights.shape[:2], -1)
        return weights / weights.sum(-1, keepdims=True).clip(min=1e-12)

    def entropy(self) -> float:
        """Entropy of the attention weights, divided by the logarithm of the number of keys: `normalised_entropy`."""
        return normalised_entropy(self.weights_per_query)

    def nearest_query(self, point: Array | tuple[float, float]) -> int:
        """The token of the first map whose centre is nearest to `point` (x, y) in [0, 1]; queries on a grid only."""
        assert self.query_sizes is not None
        (height, width), (x, y) = self.query_sizes[0], point
        column, row = (min(max(int(v * n), 0), n - 1) for v, n in ((x, width), (y, height)))
        return row * width + column


def kind_of(weights: Array, locations: Array | None, num_tokens: int) -> Kind | None:
    """How to draw weights and locations of one image, of any attention, from their shapes; None if they do not fit."""
    if locations is None or locations.shape == (num_tokens, 2):  # of a dense attention with a position bias
        return Kind.MAP if weights.ndim == 3 and weights.shape[2] == num_tokens else None
    if weights.ndim == 4 and locations.shape == (*weights.shape, 2):
        return Kind.POINTS
    if weights.ndim != 3 or locations.ndim != 3 or locations.shape[2] != 2:
        return None
    if locations.shape[:2] == (weights.shape[0], weights.shape[2]):
        return Kind.WINDOW
    return Kind.GRID if locations.shape[0] == weights.shape[2] else None


def normalised_entropy(weights: Array) -> float:
    """Mean over heads and queries of -Σ w log w / log K, for weights (Q, M, K) over K keys that sum to 1.

    In [0, 1]: 0 if each query attends to one key, 1 if to all keys equally. K is the number of keys that the attention
    offers, those masked at borders included. NaN for one key.
    """
    keys = weights.shape[-1]
    if keys < 2:
        return math.nan
    positive = np.where(weights > 0, weights, 1.0)
    return float(-(weights * np.log(positive)).sum(-1).mean(dtype=np.float64) / math.log(keys))


@contextmanager
def record_attentions(
    model: nn.Module, receive: Callable[[AttentionRecord], None], roles: Collection[Role] = tuple(Role)
) -> Iterator[None]:
    """Call `receive` with the record of each attention of `model` after each of its forward passes in the block.

    `roles`: of the attentions that are recorded.

    For batches of one image that is not padded. An attention is recorded on its own, so that memory is needed for one
    at a time. Left out are attentions that record nothing, and those with more than MAX_WEIGHTS weights.
    """
    names = attention_names(model)
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, Attention) and module.slot.role in roles:
                _Recorder(names[name], module, receive, stack)
        yield


class _Recorder:
    """Records one attention."""

    def __init__(self, name: str, module: Attention, receive: Callable[[AttentionRecord], None], stack: ExitStack):
        self._name, self._receive = name, receive
        self._entries: list[dict[str, Tensor]] = []
        self._recording = stack.enter_context(ExitStack())
        stack.callback(module.register_forward_pre_hook(self._before).remove)
        stack.callback(module.register_forward_hook(self._after).remove)

    def _before(self, module: Any, inputs: tuple[Queries, Pyramid]) -> None:
        queries, memory = inputs
        if max_weights(module, queries, memory.layout) <= MAX_WEIGHTS:
            (self._entries,) = self._recording.enter_context(record(module)).values()

    def _after(self, module: Any, inputs: tuple[Queries, Pyramid], output: Tensor) -> None:
        self._recording.close()
        entries, self._entries = self._entries, []
        for entry in entries:
            if "weights" in entry:
                self._receive(_to_record(self._name, module, *inputs, entry))


def max_weights(module: Attention, queries: Queries, layout: Layout) -> float:
    """An upper bound of the attention weights of one image: each is multiplied with a value of `head_dim` channels."""
    num_queries = queries.layout if queries.layout is not None else queries.tokens.shape[1]
    operations = module.flops(num_queries, layout) + module.extra_flops(num_queries, layout)
    return operations / module.slot.head_dim


def _to_record(
    name: str, module: Attention, queries: Queries, memory: Pyramid, entry: dict[str, Tensor]
) -> AttentionRecord:
    layout = memory.layout
    if len(queries.tokens) != 1 or layout.padding_mask is not None:
        raise ValueError("expected a batch of one image without padding")
    if isinstance(module, DeformableAttention):
        layout = layout.level(module.level)

    def array(key: str) -> Array | None:
        return entry[key][0].float().cpu().numpy() if key in entry else None

    weights, locations = array("weights"), array("locations")
    assert weights is not None
    references = array("reference_points")
    if references is None and queries.reference_points is not None:
        references = queries.reference_points[0].detach().float().cpu().numpy()
    grids = None
    if isinstance(module, DeformableKeyValueAttention):
        grids = tuple(_regular_grid(module, level, layout) for level in range(layout.num_levels))
    return AttentionRecord(
        name,
        module.slot.role,
        weights,
        locations,
        references,
        layout.spatial_shapes,
        grids,
        query_sizes=None if queries.layout is None else queries.layout.spatial_shapes,
        bias=array("bias"),
        initial_offsets=_initial_offsets(module),
    )


def _initial_offsets(module: Attention) -> Array | None:
    if not isinstance(module, MultiScaleDeformableAttention):
        return None
    return module.initial_offsets().detach().cpu().numpy()


def _regular_grid(module: DeformableKeyValueAttention, level: int, layout: Layout) -> Array:
    """The locations (h, w, 2) of the keys of one level without offsets, in [0, 1]."""
    grid, shape, size = module.grids[level], layout.spatial_shapes[level], layout.valid_sizes[0, level]
    positions = module.convention.grid_positions(grid.index(shape, size), grid.valid_shape(size))
    locations = (module.convention.to_pixels(positions, size) + 0.5) / layout.sizes_wh[level]
    return locations.unflatten(0, grid.output_shape(shape)).cpu().numpy()


def attention_names(model: nn.Module) -> dict[str, str]:
    """Names of the attentions of a model by their qualified names: role and layer, of a stage its number from 1."""
    names: dict[str, str] = {}
    for qualified, module in model.named_modules():
        if isinstance(module, Attention):
            name = f"{module.slot.role}.{module.slot.layer}"
            parts = qualified.split(".")
            if module.slot.role == Role.STAGE and "stages" in parts[:-1]:
                number = int(parts[parts.index("stages") + 1]) + 1
                name = f"{Role.STAGE}{number}.{module.slot.layer}"
            names[qualified] = name if name not in names.values() else qualified
    return names


def predicted_offsets(record: AttentionRecord) -> Array | None:
    """Offsets (Q, M, L, P, 2) of sampling points from the reference points, x before y, as the attention predicts them.

    In pixels of each level or, where the references are boxes, in 1 / 2P of their width and height: in both, point k of
    `ms_deform` is initially at k + 1 (max-norm). None without sampling points or references.
    """
    if record.kind != Kind.POINTS or record.references is None or record.locations is None:
        return None
    references = record.references[:, None, None, None]
    moved = record.locations - references[..., :2]
    if references.shape[-1] == 4:
        points = record.locations.shape[3]
        return moved * 2 * points / np.maximum(references[..., 2:], 1e-6)
    return moved * np.array([(w, h) for h, w in record.map_sizes])[:, None]


def initial_record(record: AttentionRecord) -> AttentionRecord | None:
    """The same queries as a new layer would look: initial offsets and equal weights; None without initial offsets."""
    if record.initial_offsets is None or record.references is None or record.kind != Kind.POINTS:
        return None
    references = record.references[:, None, None, None]
    if references.shape[-1] == 4:
        moved = record.initial_offsets * references[..., 2:] / (2 * record.weights.shape[3])
    else:
        moved = record.initial_offsets / np.array([(w, h) for h, w in record.map_sizes])[:, None]
    locations = np.broadcast_to(references[..., :2] + moved, (*record.weights.shape, 2))
    equal = np.full_like(record.weights, 1 / math.prod(record.weights.shape[2:]))
    return replace(record, weights=equal, locations=locations)


def grid_offsets(record: AttentionRecord) -> list[Array] | None:
    """Of each level, how far (K, G, 2) the keys of a grid were moved, in pixels; None for other attentions."""
    if record.grids is None or record.locations is None:
        return None
    offsets, start = [], 0
    for grid, (height, width) in zip(record.grids, record.map_sizes, strict=True):
        regular = grid.reshape(-1, 1, 2)
        moved = record.locations[start : start + len(regular)] - regular
        offsets.append(moved * np.array([width, height]))
        start += len(regular)
    return offsets


def token_centers(map_sizes: tuple[tuple[int, int], ...]) -> Array:
    """Centres (K, 2) of the tokens of all levels, x before y, in [0, 1]."""
    levels = []
    for height, width in map_sizes:
        y, x = np.mgrid[:height, :width]
        levels.append(np.stack([(x + 0.5) / width, (y + 0.5) / height], -1).reshape(-1, 2))
    return np.concatenate(levels)
