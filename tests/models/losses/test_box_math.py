import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.losses import random_boxes

from attnzoo.models.detr.boxes import cxcywh_to_xyxy, elementwise_giou, inverse_sigmoid, pairwise_giou, xyxy_to_cxcywh


def test_conversions_by_hand_and_back():
    boxes = torch.tensor([[0.5, 0.25, 0.2, 0.1]])
    torch.testing.assert_close(cxcywh_to_xyxy(boxes), torch.tensor([[0.4, 0.2, 0.6, 0.3]]))
    many = random_boxes(4, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(many)), many)


def test_giou_by_hand():
    unit = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    others = torch.tensor(
        [
            [0.5, 0.5, 0.2, 0.2],  # itself
            [0.6, 0.5, 0.2, 0.2],  # overlapping by half: IoU 1/3, union = enclosing box
            [0.9, 0.5, 0.2, 0.2],  # 0.2 apart: IoU 0, a third of the enclosing box is empty
            [0.7, 0.7, 0.2, 0.2],  # touching at a corner: half of the enclosing box is empty
            [0.5, 0.5, 0.0, 0.0],  # a point inside
        ]
    )
    expected = torch.tensor([[1, 1 / 3, -1 / 3, -1 / 2, 0]])
    torch.testing.assert_close(pairwise_giou(unit, others), expected)
    torch.testing.assert_close(elementwise_giou(unit.expand(5, 4), others), expected[0])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000))
def test_giou_is_symmetric_and_bounded(seed):
    g = torch.Generator().manual_seed(seed)
    a, b = random_boxes(2, 3, generator=g), random_boxes(2, 5, generator=g)
    pairs = pairwise_giou(a, b)
    assert pairs.shape == (2, 3, 5)
    assert (pairs.abs() <= 1).all()
    torch.testing.assert_close(pairs, pairwise_giou(b, a).transpose(1, 2))
    torch.testing.assert_close(elementwise_giou(a, b[:, :3]), pairs.diagonal(dim1=1, dim2=2))


def test_inverse_sigmoid_is_exact_inside_and_finite_at_the_ends():
    x = torch.tensor([-7.0, -1.0, 0.0, 2.5, 7.0], dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(x.sigmoid()), x)
    ends = inverse_sigmoid(torch.tensor([0.0, 1.0, -0.1, 1.3]))
    bound = torch.tensor(1e5).log()
    torch.testing.assert_close(ends, torch.stack([-bound, bound, -bound, bound]))
