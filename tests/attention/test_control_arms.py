"""Options that take one part of an attention away: against loops in float64, and in the contract."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.attention import padded_memory, perturbed
from torch import Tensor
from torch.testing import assert_close

from attnzoo import contract, models
from attnzoo.attention import build, record
from attnzoo.attention.deformable import BORDER_TOLERANCE, MultiScaleDeformableAttention
from attnzoo.contract import Case
from attnzoo.contract.cases import roles
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot

MAPS = ((4, 6), (3, 2))
DIM, HEADS, POINTS = 8, 4, 3


def object_queries(boxes: bool) -> Queries:
    tokens, pos = torch.randn(2, 2, 7, DIM, dtype=torch.float64)
    refs = torch.rand(2, 7, 4 if boxes else 2, dtype=torch.float64)
    return Queries(tokens, refs, pos)


def pixel(value: Tensor, layout: Layout, level: int, image: int, row: int, column: int) -> Tensor:
    """The value (C,) of a pixel; zero outside the map and at padding."""
    h, w = layout.spatial_shapes[level]
    if not (0 <= row < h and 0 <= column < w):
        return torch.zeros_like(value[0, 0])
    token = sum(a * b for a, b in layout.spatial_shapes[:level]) + row * w + column
    assert layout.padding_mask is not None
    return value[image, token] * ~layout.padding_mask[image, token]


def loop(attention: Any, queries: Queries, memory: Pyramid, offsets: str, weights: str, sampling: str) -> Tensor:
    """The attention of one query, head, level and point after the other."""
    layout, levels = memory.layout, memory.layout.num_levels
    query = queries.tokens + queries.pos
    value = memory.tokens @ attention.value_proj.weight.T + attention.value_proj.bias
    head_dim = DIM // HEADS
    output = torch.zeros_like(queries.tokens)
    for b, q, m in itertools.product(range(2), range(query.shape[1]), range(HEADS)):
        scores = torch.zeros(levels * POINTS, dtype=torch.float64)
        if weights == "learned":
            rows = slice(m * levels * POINTS, (m + 1) * levels * POINTS)
            scores = attention.attention_weights.weight[rows] @ query[b, q] + attention.attention_weights.bias[rows]
        scores = scores.exp() / scores.exp().sum()
        for level, k in itertools.product(range(levels), range(POINTS)):
            shift = [0.0, 0.0]
            if offsets == "frozen":
                shift = attention.frozen_offsets[m, level, k].tolist()
            elif offsets == "learned":
                row = ((m * levels + level) * POINTS + k) * 2
                linear = attention.sampling_offsets
                shift = (linear.weight[row : row + 2] @ query[b, q] + linear.bias[row : row + 2]).tolist()
            h, w = layout.spatial_shapes[level]
            reference = queries.reference_points[b, q].tolist()
            ratio = layout.valid_ratios[b, level].tolist()
            x, y = (reference[i] * ratio[i] for i in (0, 1))
            if len(reference) == 4:
                x, y = (p + shift[i] / POINTS * reference[2 + i] * ratio[i] / 2 for i, p in enumerate((x, y)))
            else:
                x, y = x + shift[0] / w, y + shift[1] / h
            if sampling == "nearest":
                row, column = (math.floor(p * n + BORDER_TOLERANCE) for p, n in ((y, h), (x, w)))
                sample = pixel(value, layout, level, b, row, column)
            else:
                sample = torch.zeros(DIM, dtype=torch.float64)
                top, left = math.floor(y * h - 0.5), math.floor(x * w - 0.5)
                for i, j in itertools.product((top, top + 1), (left, left + 1)):
                    share = (1 - abs(y * h - 0.5 - i)) * (1 - abs(x * w - 0.5 - j))
                    sample = sample + share * pixel(value, layout, level, b, i, j)
            of_head = slice(m * head_dim, (m + 1) * head_dim)
            output[b, q, of_head] += scores[level * POINTS + k] * sample[of_head]
    return output @ attention.output_proj.weight.T + attention.output_proj.bias


ARMS = [
    (offsets, weights, sampling)
    for offsets, weights, sampling in itertools.product(
        ("learned", "frozen", "zero"), ("learned", "uniform"), ("bilinear", "nearest")
    )
    if (offsets, sampling) != ("learned", "nearest")
]


@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize(("offsets", "weights", "sampling"), ARMS)
def test_deformable_equals_a_loop(offsets: str, weights: str, sampling: str, boxes: bool) -> None:
    torch.manual_seed(0)
    options = {"points": POINTS, "offsets": offsets, "weights": weights, "sampling": sampling}
    attention = perturbed(build("ms_deform", Slot(DIM, HEADS, 2, Role.DECODER), **options), 0.5)
    memory, queries = padded_memory(MAPS, DIM), object_queries(boxes)
    expected = loop(attention, queries, memory, offsets, weights, sampling)
    assert_close(attention(queries, memory), expected, atol=1e-11, rtol=0)


@pytest.mark.parametrize(("offsets", "weights", "sampling"), ARMS)
def test_single_scale_equals_a_loop(offsets: str, weights: str, sampling: str) -> None:
    torch.manual_seed(0)
    options = {"points": POINTS, "offsets": offsets, "weights": weights, "sampling": sampling}
    slot = Slot(DIM, HEADS, 2, Role.DECODER)
    if (offsets, weights) == ("zero", "learned"):
        with pytest.raises(UserError, match="weights have no effect: set weights to uniform"):
            build("deform", slot, level=1, **options)
        return
    attention = perturbed(build("deform", slot, level=1, **options), 0.5)
    memory, queries = padded_memory(MAPS, DIM), object_queries(boxes=False)
    expected = loop(attention, queries, memory.level(1), offsets, weights, sampling)
    assert_close(attention(queries, memory), expected, atol=1e-11, rtol=0)


@pytest.mark.parametrize(("offsets", "weights", "sampling"), ARMS)
def test_what_is_not_used_is_not_a_parameter(offsets: str, weights: str, sampling: str) -> None:
    attention = build("ms_deform", Slot(DIM, HEADS, 2), offsets=offsets, weights=weights, sampling=sampling)
    parts = {name.split(".")[0] for name, _ in attention.named_parameters()}
    expected = {"value_proj", "output_proj"}
    expected |= {"sampling_offsets"} if offsets == "learned" else set()
    expected |= {"attention_weights"} if weights == "learned" else set()
    assert parts == expected
    assert [name for name, _ in attention.named_buffers()] == (["frozen_offsets"] if offsets == "frozen" else [])


def test_frozen_offsets_are_the_initial_ones() -> None:
    torch.manual_seed(0)
    learned, frozen = (build("ms_deform", Slot(DIM, HEADS, 2), offsets=offsets) for offsets in ("learned", "frozen"))
    assert torch.equal(learned.sampling_offsets.bias, frozen.frozen_offsets.flatten())
    memory = padded_memory(MAPS, DIM)
    memory = replace(memory, tokens=memory.tokens.float(), pos=memory.pos.float())
    frozen.load_state_dict({k: v for k, v in learned.state_dict().items() if "sampling" not in k}, strict=False)
    assert_close(frozen(memory.as_queries(), memory), learned(memory.as_queries(), memory))


def nearest_pixels(xy: list[list[float]], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What nearest sampling reads at (x, y) in pixels of a map of the values 1, 2, 3, …, and where."""
    h, w = size
    attention = MultiScaleDeformableAttention(
        Slot(1, 1), points=1, offsets="zero", weights="uniform", sampling="nearest"
    )
    attention.double()
    with torch.no_grad():
        for projection in (attention.value_proj, attention.output_proj):
            projection.weight.fill_(1)
            projection.bias.zero_()
    memory = Pyramid(torch.arange(1, h * w + 1).double().view(1, -1, 1), Layout.unpadded((size,), 1))
    refs = (torch.tensor([xy]).double() + 0.5) / torch.tensor([w, h])
    with record(attention) as recording:
        output = attention(Queries(torch.zeros(1, len(xy), 1).double(), refs), memory)
    return output.flatten(), recording[""][0]["locations"].view(-1, 2) * torch.tensor([w, h]) - 0.5


def test_nearest_sampling_at_borders() -> None:
    """Up to half a pixel beyond the outermost centres a location is on the map; beyond it the value is zero."""
    read, centers = nearest_pixels(
        [[-0.49, 0.0], [-0.51, 0.0], [3.49, 1.0], [3.51, 1.0], [0.49, 0.0], [0.51, 0.0], [0.5, 0.5], [1e9, 0.0]], (3, 4)
    )
    assert_close(read, torch.tensor([1, 0, 8, 0, 1, 2, 6, 0]).double())
    expected = [[0, 0], [-1, 0], [3, 1], [4, 1], [0, 0], [1, 0], [1, 1]]
    assert_close(centers[:-1], torch.tensor(expected).double())


@pytest.mark.parametrize("side", [3, 7, 49, 100, 134])
def test_rounding_does_not_decide_between_pixels(side: int) -> None:
    """Centres of a map of half the size lie on borders of pixels: all go to the right and lower pixel."""
    corners = [[2 * i + 0.5, 2 * i + 0.5] for i in range(side // 2)]
    for dtype in (torch.float32, torch.float64):
        refs = (torch.tensor(corners, dtype=dtype) + 0.5) / side
        _, centers = nearest_pixels(((refs.double() * side) - 0.5).tolist(), (side, side))
        assert_close(centers, torch.tensor(corners).double() + 0.5, atol=1e-6, rtol=0)


def test_nearest_sampling_of_trained_offsets_gives_them_no_gradient() -> None:
    torch.manual_seed(0)
    attention: Any = perturbed(MultiScaleDeformableAttention(Slot(DIM, HEADS, 2, Role.DECODER), points=POINTS), 0.5)
    memory, queries = padded_memory(MAPS, DIM), object_queries(boxes=False)
    attention.sampling = "nearest"
    output = attention(queries, memory)
    assert_close(output, loop(attention, queries, memory, "learned", "learned", "nearest"), atol=1e-11, rtol=0)
    output.square().sum().backward()
    assert attention.sampling_offsets.weight.grad is None
    assert attention.attention_weights.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "nearest"}, "sampling = 'nearest' passes no gradient to offsets, so they cannot be learned: set"),
        (
            {"offsets": "zero"},
            "offsets = 'zero' with points = 4 on one level reads one value per head, so weights have no",
        ),
        ({"offsets": "frozen", "points": 1}, "offsets = 'frozen' with points = 1 on one level reads one value"),
        ({"offsets": "fixed"}, "offsets = 'fixed': expected 'learned' | 'frozen' | 'zero'"),
    ],
)
def test_rejects_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        build("ms_deform", Slot(DIM, HEADS), **options)
    assert message in str(error.value)


CONTRACT = [
    ("ms_deform", (("offsets", "frozen"),)),
    ("ms_deform", (("offsets", "zero"),)),
    ("ms_deform", (("weights", "uniform"),)),
    ("ms_deform", (("offsets", "frozen"), ("weights", "uniform"))),
    ("ms_deform", (("offsets", "zero"), ("weights", "uniform"))),
    ("ms_deform", (("offsets", "frozen"), ("sampling", "nearest"))),
    ("ms_deform", (("offsets", "zero"), ("weights", "uniform"), ("sampling", "nearest"))),
    ("deform", (("offsets", "frozen"),)),
    ("deform", (("offsets", "zero"), ("weights", "uniform"))),
    ("deform", (("offsets", "frozen"), ("sampling", "nearest"))),
    ("dense", (("bias", "relative"),)),
    ("dense", (("bias", "relative"), ("dropout", 0.5))),
    ("dat", (("offset_conv", "grouped"),)),
    ("dat", (("offset_conv", "full"), ("groups", 2))),
    ("dcn", (("modulation", False), ("kernel", 5))),
    ("conv", (("kernel", 1),)),
]


def marks(name: str, clause: str) -> tuple[pytest.MarkDecorator, ...]:
    """Compilers take seconds per case, as do all options of DAT; tests/contract runs both with the default options."""
    long = clause.startswith("compile") or (name == "dat" and clause in ("options", "export"))
    return (pytest.mark.slow, pytest.mark.long) if long else ()


def contract_cases() -> Iterator[Any]:
    for (name, options), clause in itertools.product(CONTRACT, contract.CLAUSES):
        for case in (Case(name, role, options) for role in roles(name)):
            yield pytest.param(case, clause, id=f"{clause}-{case}", marks=marks(name, clause))


@pytest.mark.parametrize(("case", "clause"), list(contract_cases()))
def test_contract_with_options(case: Case, clause: str) -> None:
    try:
        case.build()
    except UserError:
        assert case.role == Role.STAGE, "only one level may be too few"
        return
    contract.CLAUSES[clause](case)


SMALL = {
    "dim": 32, "heads": 4, "ffn": 64, "queries": 5, "neck": {"c6": False}, "encoder": {"layers": 1},
    "backbone": {"name": "swin_pico", "strides": [8, 16], "norm": "trained", "freeze": []},
}  # fmt: skip


def detector_state(**options: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    decoder = {"layers": 2, "attention": {"name": "ms_deform", **options}}
    return models.create("deformable_detr_r50", num_classes=3, **SMALL, decoder=decoder).state_dict()


def test_arms_of_one_seed_share_all_other_tensors() -> None:
    learned = detector_state()
    for offsets, weights, sampling in ARMS[1:]:
        arm = detector_state(offsets=offsets, weights=weights, sampling=sampling)
        assert {name for name in learned if name not in arm} == {
            name for name in learned
            if (offsets != "learned" and "sampling_offsets" in name and "decoder" in name)
            or (weights == "uniform" and "attention_weights" in name and "decoder" in name)
        }  # fmt: skip
        assert all(torch.equal(arm[name], learned[name]) for name in arm if name in learned)
