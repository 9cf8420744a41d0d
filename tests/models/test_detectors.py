"""Detectors: parameter counts, initialisation, combinations of options, errors and invariances."""

import math
import re
from itertools import product
from typing import Any

import pytest
import torch
from support.models import CLASSES, detection_targets, padded_images, perturbed, tiny, without_gradient
from torch import Tensor

from attnzoo import attention, models
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid
from attnzoo.models.detr.heads import BoxHead
from attnzoo.models.detr.losses import SetCriterion
from attnzoo.models.detr.queries import LearnedQueries
from attnzoo.models.position import sine_position_embedding

PARAMETERS = {  # total, trainable
    "detr_r50": (41_524_768, 41_302_368),
    "detr_r50_dc5": (41_524_768, 41_302_368),
    # a ResNet-101 has 17 more bottlenecks of 256·1024 + 9·256² + 1024·256 weights in its third stage than a ResNet-50
    "detr_r101": (41_524_768 + 17 * 1_114_112, 41_302_368 + 17 * 1_114_112),
    "detr_r101_dc5": (41_524_768 + 17 * 1_114_112, 41_302_368 + 17 * 1_114_112),
    "deformable_detr_r50_single_scale": (34_066_593, 33_844_193),
    "deformable_detr_r50_single_scale_dc5": (34_066_593, 33_844_193),
    "deformable_detr_r50": (40_069_665, 39_847_265),
    "deformable_detr_r50_refine": (40_849_660, 40_627_260),
    "deformable_detr_r50_two_stage": (41_181_529, 40_959_129),
}


def test_every_preset_is_listed() -> None:
    assert set(models.names(family="detector")) == set(PARAMETERS)


@pytest.mark.parametrize("preset", PARAMETERS)
def test_parameters_as_published(preset: str) -> None:
    with torch.device("meta"):
        model = models.create(preset)
    counts = [p.numel() for p in model.parameters()], [p.numel() for p in model.parameters() if p.requires_grad]
    assert (sum(counts[0]), sum(counts[1])) == PARAMETERS[preset]


@pytest.mark.parametrize(
    ("head", "size_biases"),
    [({}, [-2, -2]), ({"refine": True}, [-2, 0]), ({"refine": True, "two_stage": True}, [0, 0, 0])],
    ids=["plain", "refine", "two_stage"],
)
def test_published_initialisation(head: dict[str, bool], size_biases: list[float]) -> None:
    model = tiny(head=head)
    for classifier in model.heads.classes:
        torch.testing.assert_close(classifier.bias, torch.full((CLASSES,), -math.log(99)))
    boxes = [*model.heads.boxes, *([model.heads.encoder_box] if model.heads.encoder_box is not None else [])]
    assert [box.layers[-1].bias.tolist() for box in boxes] == [[0, 0, b, b] for b in size_biases]
    assert all(box.layers[-1].weight.eq(0).all() for box in boxes)
    if "two_stage" not in head:
        assert model.queries.reference_points.bias.eq(0).all()


@pytest.mark.parametrize("autocast", [False, True])
def test_references_and_boxes_stay_in_float32(autocast: bool) -> None:
    """bfloat16 would shift a reference at the right of a map of width 134 by a quarter of a pixel."""
    sources = perturbed(LearnedQueries(50, 32, content=True, refs=True)), perturbed(BoxHead(32))
    states = torch.randn(50, 32).bfloat16().float()  # exact in both
    queries, head = (module.bfloat16().float() for module in sources)
    exact = queries(2).reference_points, head(states)
    if not autocast:
        queries, head, states = queries.bfloat16(), head.bfloat16(), states.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(queries(2).reference_points, exact[0])
        assert torch.equal(head(states), exact[1])


def test_level_embedding_is_standard_normal() -> None:
    torch.manual_seed(0)
    neck = models.create("deformable_detr_r50", encoder={"layers": 0}, decoder={"layers": 1}).neck
    assert abs(neck.level_embedding.std().item() - 1) < 0.1
    assert abs(neck.level_embedding.mean().item()) < 0.1


COMBINATIONS = list(
    product(
        [name for name in attention.names() if "encoder" in attention.ATTENTIONS.get(name).roles],
        [name for name in attention.names() if "decoder" in attention.ATTENTIONS.get(name).roles],
        [1, 2],
        [(False, False), (True, False), (True, True)],
    )
)


@pytest.mark.parametrize(("encoder", "decoder", "levels", "stages"), COMBINATIONS)
def test_combinations_train(encoder: str, decoder: str, levels: int, stages: tuple[bool, bool]) -> None:
    def block(name: str) -> dict[str, Any]:
        return {"name": name, "level": 0} if name == "deform" and levels > 1 else {"name": name}

    refine, two_stage = stages
    model = tiny(
        backbone={"strides": [8, 16][-levels:]},
        encoder={"layers": 1, "attention": block(encoder)},
        decoder={"layers": 2, "attention": block(decoder)},
        head={"refine": refine, "two_stage": two_stage},
    )
    output = model(*padded_images(64, 48))
    assert output.logits.shape == (2, 2, 6, CLASSES)
    assert output.boxes.shape == (2, 2, 6, 4)
    loss = SetCriterion(model.config.loss, CLASSES)(output, detection_targets()).total
    loss.backward()
    assert loss.isfinite()
    reads_positions = encoder != "conv" or decoder not in ("deform", "ms_deform")
    assert without_gradient(model) == ([] if reads_positions else ["neck.level_embedding"])
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"heads": 5}, r"model\.heads"),
        ({"head": {"refine": True, "boxes": "absolute"}}, r"model\.head\.refine"),
        (
            {"backbone": {"strides": [8, 16]}, "encoder": {"attention": {"name": "deform"}}},
            r"model\.encoder\.attention",
        ),
        ({"backbone": {"name": "resnet5000", "options": {}}}, r"model\.backbone\.name"),
        ({"backbone": {"options": {"colour": 3}}}, r"model\.backbone"),
        ({"backbone": {"strides": [7]}}, r"model\.backbone\.strides"),
        ({"backbone": {"freeze": ["layer9"]}}, r"model\.backbone\.freeze"),
    ],
    ids=["heads", "refine", "level", "backbone", "option", "stride", "freeze"],
)
def test_errors_name_the_key(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tiny(**overrides)
    assert "\n" not in str(caught.value)
    assert all(re.match(message, key) for key in caught.value.keys[:1])


def pyramid(masks: list[Tensor], generator: torch.Generator) -> Pyramid:
    layout = Layout.from_masks(masks)
    tokens = torch.randn(len(masks[0]), layout.num_tokens, 32, generator=generator)
    pos = torch.cat([sine_position_embedding(mask, 32, "deformable_detr").flatten(1, 2) for mask in masks], 1)
    return Pyramid(tokens, layout, pos)


@torch.no_grad()
def test_permuted_queries_give_permuted_detections() -> None:
    model = perturbed(tiny("detr_r50", neck={"c6": False}))
    memory = pyramid([torch.zeros(1, 4, 5, dtype=torch.bool)], torch.Generator().manual_seed(1))
    before = model.forward_transformer(memory)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    model.queries.embedding.weight.copy_(model.queries.embedding.weight[order])
    after = model.forward_transformer(memory)
    torch.testing.assert_close(after.logits, before.logits[:, :, order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after.boxes, before.boxes[:, :, order], atol=1e-5, rtol=1e-5)


def small_and_padded(levels: int) -> tuple[Pyramid, Pyramid]:
    """The same features without padding, and in larger maps with random values in the padding."""
    g = torch.Generator().manual_seed(1)
    sizes = [((4, 6), (7, 9)), ((2, 3), (4, 5))][:levels]  # valid, padded
    small = pyramid([torch.zeros(1, *valid, dtype=torch.bool) for valid, _ in sizes], g)
    masks = []
    for (h, w), size in sizes:
        mask = torch.ones(1, *size, dtype=torch.bool)
        mask[:, :h, :w] = False
        masks.append(mask)
    large = pyramid(masks, g)
    assert large.layout.padding_mask is not None
    large.tokens[~large.layout.padding_mask] = small.tokens[0]
    return small, large


@torch.no_grad()
@pytest.mark.parametrize("preset", ["detr_r50", "deformable_detr_r50", "deformable_detr_r50_refine"])
def test_padding_does_not_change_predictions(preset: str) -> None:
    levels = 1 if preset == "detr_r50" else 2
    model = perturbed(tiny(preset, backbone={"strides": [8, 16][-levels:]}))
    small, large = small_and_padded(levels)
    plain, padded = model.forward_transformer(small), model.forward_transformer(large)
    torch.testing.assert_close(padded.logits, plain.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded.boxes, plain.boxes, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_does_not_change_selected_proposals() -> None:
    """As in the published code, padded tokens have a constant score and could be selected; here it is low."""
    model = perturbed(tiny("deformable_detr_r50_two_stage", backbone={"strides": [8, 16]}))
    padding_feature = model.queries.output_norm(model.queries.output.bias)
    model.heads.encoder_class.weight[0] = -padding_feature
    small, large = small_and_padded(levels=2)
    plain, padded = model.forward_transformer(small), model.forward_transformer(large)
    assert plain.encoder_logits is not None
    assert padded.encoder_logits is not None
    assert large.layout.padding_mask is not None
    padding_scores = padded.encoder_logits[..., 0][large.layout.padding_mask]
    assert (padding_scores == padding_scores[0]).all()
    assert plain.encoder_logits[..., 0].topk(6).values.min() > padding_scores[0]
    torch.testing.assert_close(padded.logits, plain.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded.boxes, plain.boxes, atol=1e-5, rtol=1e-5)
