"""Each option of detectors has its documented effect."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from support.models import CLASSES, detection_targets, padded_images, perturbed, tiny, without_gradient
from torch import Tensor

from attnzoo import models
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid
from attnzoo.models.backbone import Backbone
from attnzoo.models.config import BackboneConfig, NeckConfig
from attnzoo.models.cost import count_modules
from attnzoo.models.detr.config import HeadConfig
from attnzoo.models.detr.heads import PredictionHeads
from attnzoo.models.detr.losses import SetCriterion
from attnzoo.models.detr.queries import TwoStageQueries
from attnzoo.models.neck import Neck
from attnzoo.models.position import sine_embedding

TWO_LEVELS = {"backbone": {"strides": [8, 16]}}
MAPS = [(6, 9), (3, 5)]  # not exact multiples of each other


def feature_maps(channels: list[int]) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, c, *size, generator=g) for c, size in zip(channels, MAPS, strict=True)]


def level_tokens(pyramid: Pyramid) -> list[Tensor]:
    return list(pyramid.tokens.split(pyramid.layout.tokens_per_level, 1))


def test_fpn_adds_the_coarser_levels_before_smoothing() -> None:
    neck = perturbed(Neck(NeckConfig(fpn=True, c6=False), [8, 12], 16))
    maps = feature_maps([8, 12])
    fine, coarse = (project(m) for project, m in zip(neck.projections, maps, strict=True))
    rows, columns = torch.arange(6) * 3 // 6, torch.arange(9) * 5 // 9  # the nearest coarser pixel
    expected = [neck.smooth[0](fine + coarse[:, :, rows][:, :, :, columns]), neck.smooth[1](coarse)]
    levels = level_tokens(neck(maps, None))
    for actual, level in zip(levels, expected, strict=True):
        torch.testing.assert_close(actual, level.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(("dim", "groups"), [(256, 32), (64, 32), (48, 16), (32, 16), (16, 8), (4, 2)])
def test_no_group_of_the_norm_has_one_channel(dim: int, groups: int) -> None:
    neck = Neck(NeckConfig(), [8], dim)
    assert neck.projections[0][1].num_groups == neck.c6[1].num_groups == groups


def test_map_of_one_pixel_reaches_the_tokens() -> None:
    neck = Neck(NeckConfig(c6=False, level_embedding=False), [8], 32).train()
    assert neck([torch.randn(1, 8, 1, 1)], None).tokens.abs().min() > 0


def test_c6_is_computed_from_the_last_backbone_map() -> None:
    maps = feature_maps([8, 12])
    assert Neck(NeckConfig(c6=False), [8, 12], 16)(maps, None).layout.spatial_shapes == tuple(MAPS)
    neck = perturbed(Neck(NeckConfig(c6=True), [8, 12], 16))
    pyramid = neck(maps, None)
    assert pyramid.layout.spatial_shapes == (*MAPS, (2, 3))
    convolution, norm = neck.c6
    expected = norm(F.conv2d(maps[-1], convolution.weight, convolution.bias, stride=2, padding=1))
    torch.testing.assert_close(level_tokens(pyramid)[-1], expected.flatten(2).transpose(1, 2))


def test_level_embedding_is_added_to_positions() -> None:
    maps = feature_maps([8, 12])
    plain = Neck(NeckConfig(c6=False, level_embedding=False), [8, 12], 16)
    assert plain.level_embedding is None
    neck = Neck(NeckConfig(c6=False), [8, 12], 16)
    shift = neck(maps, None).pos - plain(maps, None).pos
    expected = neck.level_embedding.repeat_interleave(torch.tensor([h * w for h, w in MAPS]), 0)
    torch.testing.assert_close(shift, expected.expand_as(shift), atol=1e-6, rtol=0)


@torch.no_grad()
def test_absolute_boxes_ignore_references() -> None:
    model = perturbed(tiny(head={"boxes": "absolute"}))
    assert model.queries.reference_points is not None, "deformable attention still needs reference points"
    delta, refs = torch.randn(2, 6, 4), torch.rand(2, 6, 2)
    torch.testing.assert_close(model._decode_box(delta, model._reference_logits(refs)), delta.sigmoid())
    assert tiny("detr_r50").queries.reference_points is None
    relative = tiny("detr_r50", head={"boxes": "relative"})
    assert relative.queries.reference_points is not None
    boxes = relative._decode_box(torch.zeros(2, 6, 4), relative._reference_logits(refs))
    torch.testing.assert_close(boxes[..., :2], refs, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("head", "different"),
    [
        ({}, 1),
        ({"shared": False}, 2),
        ({"refine": True}, 2),
        ({"refine": True, "shared": True}, 1),
        ({"two_stage": True}, 1),
        ({"two_stage": True, "refine": True}, 2),
    ],
    ids=lambda value: str(value),
)
def test_heads_are_shared_or_per_layer(head: dict[str, bool], different: int) -> None:
    heads = tiny(head=head).heads
    for modules, of_encoder in ((heads.classes, heads.encoder_class), (heads.boxes, heads.encoder_box)):
        assert len({id(module) for module in modules}) == different
        assert (of_encoder is not None) == head.get("two_stage", False)
        assert of_encoder not in list(modules), "the encoder has separate heads"


def two_stage(classes: int = CLASSES, **options: Any) -> tuple[TwoStageQueries, PredictionHeads, Pyramid]:
    """Two-stage queries, heads with nonzero weights, and a pyramid of two levels."""
    torch.manual_seed(0)
    config = HeadConfig(two_stage=True, **options)
    queries = perturbed(TwoStageQueries(config, 7, 16, CLASSES))
    heads = perturbed(PredictionHeads(config, 16, classes, 1))
    layout = Layout.unpadded(MAPS, 2)
    return queries, heads, Pyramid(torch.randn(2, layout.num_tokens, 16), layout, torch.zeros(2, layout.num_tokens, 16))


def selected_tokens(logits: Tensor, select: str) -> Tensor:
    score = logits[..., 0] if select == "class_agnostic" else logits.amax(-1)
    return score.topk(7, 1).indices


@torch.no_grad()
@pytest.mark.parametrize("select", ["class_agnostic", "max_class"])
def test_proposals_are_selected_by_the_first_or_the_maximum_class(select: str) -> None:
    queries, heads, memory = two_stage(select=select)
    selected, logits, boxes = queries(memory, heads)
    assert not torch.equal(selected_tokens(logits, "class_agnostic"), selected_tokens(logits, "max_class"))
    index = selected_tokens(logits, select)[..., None].expand(-1, -1, 4)
    torch.testing.assert_close(selected.reference_points, boxes.gather(1, index))


@torch.no_grad()
@pytest.mark.parametrize("select", ["class_agnostic", "max_class"])
def test_softmax_proposals_are_ranked_by_probability(select: str) -> None:
    queries, heads, memory = two_stage(CLASSES + 1, select=select)
    selected, logits, boxes = queries(memory, heads)
    index = selected_tokens(logits.softmax(-1)[..., :-1], select)
    assert not torch.equal(index, selected_tokens(logits[..., :-1], select))
    torch.testing.assert_close(selected.reference_points, boxes.gather(1, index[..., None].expand(-1, -1, 4)))


@torch.no_grad()
def test_content_from_the_encoder_token() -> None:
    queries, heads, memory = two_stage(content="memory")
    selected, logits, _ = queries(memory, heads)
    index = selected_tokens(logits, "class_agnostic")[..., None].expand(-1, -1, 16)
    features = queries.output_norm(queries.output(memory.tokens))
    torch.testing.assert_close(selected.tokens, features.gather(1, index))


@torch.no_grad()
def test_content_from_the_proposal_box() -> None:
    queries, heads, memory = two_stage()
    selected, _, _ = queries(memory, heads)
    embedded = torch.cat([sine_embedding(selected.reference_points[..., i], 8) for i in range(4)], -1)
    pos, tokens = queries.position_norm(queries.position(embedded)).chunk(2, -1)
    torch.testing.assert_close(selected.tokens, tokens)
    torch.testing.assert_close(selected.pos, pos)


def test_more_queries_than_tokens_raise() -> None:
    model = tiny(head={"two_stage": True}, queries=100)
    with pytest.raises(UserError, match=r"model\.queries = 100: exceeds the 12 encoder tokens"):
        model(torch.zeros(1, 3, 48, 64))


def test_anchors_larger_than_the_image_raise() -> None:
    tiny(head={"two_stage": True, "anchor_size": 0.4}, **TWO_LEVELS)
    with pytest.raises(UserError, match=r"model\.head\.anchor_size = 0\.5: .* it is 1 of the image on the last of 2"):
        tiny(head={"two_stage": True, "anchor_size": 0.5}, **TWO_LEVELS)


OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "fpn": ("deformable_detr_r50", {"neck": {"fpn": True}, **TWO_LEVELS}),
    "c6": ("deformable_detr_r50", {"neck": {"c6": True}}),
    "no level embedding": ("deformable_detr_r50", {"neck": {"level_embedding": False}, **TWO_LEVELS}),
    "absolute boxes": ("deformable_detr_r50", {"head": {"boxes": "absolute"}}),
    "relative boxes": ("detr_r50", {"head": {"boxes": "relative"}}),
    "heads per layer": ("detr_r50", {"head": {"shared": False}}),
    "one head for refinement": ("deformable_detr_r50_refine", {"head": {"shared": True}}),
    "two stages without refinement": ("deformable_detr_r50", {"head": {"two_stage": True}}),
    "maximum class": ("deformable_detr_r50_two_stage", {"head": {"select": "max_class"}}),
    "content of memory": ("deformable_detr_r50_two_stage", {"head": {"content": "memory"}}),
    "no box bias": ("deformable_detr_r50", {"head": {"box_size_bias": None}}),
    "focal DETR (DC5+)": (
        "detr_r50_dc5",
        {
            "backbone": {"dilation": False},
            "loss": {"classification": "focal", "class_weight": 2.0, "match_class": 2.0},
            "head": {"class_prior": 0.01},
            "queries": 9,
        },
    ),
    "cross-entropy, two stages": (
        "deformable_detr_r50_two_stage",
        {"loss": {"classification": "cross_entropy"}, "head": {"class_prior": None, "select": "max_class"}},
    ),
    "a hierarchical ViT": (
        "deformable_detr_r50",
        {
            "backbone": {
                "name": "swin_tiny_patch4_window7_224",
                "options": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "img_size": [48, 64]},
                "strides": [8, 16],
            }
        },
    ),
    "another CNN": (
        "deformable_detr_r50",
        {"backbone": {"name": "convnext_atto", "options": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}}},
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_trains(name: str) -> None:
    preset, overrides = OPTIONS[name]
    model = tiny(preset, **overrides)
    images, mask = padded_images(48, 64)
    output = model(images, mask)
    select = model.config.head.select
    loss = SetCriterion(model.config.loss, CLASSES, select=select)(output, detection_targets()).total
    loss.backward()
    assert loss.isfinite()
    assert without_gradient(model) == []
    for key, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.isfinite().all(), key
    reached = {key.split(".")[0] for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"backbone", "neck", "encoder", "decoder", "heads", "queries"} <= reached


@torch.no_grad()
def test_swin_maps_have_the_declared_strides_and_channels() -> None:
    model = tiny(*OPTIONS["a hierarchical ViT"][:1], **OPTIONS["a hierarchical ViT"][1])
    maps = model.backbone(torch.randn(1, 3, 48, 64))
    assert [tuple(m.shape) for m in maps] == [(1, 16, 6, 8), (1, 32, 3, 4)]
    assert model.backbone.channels == [16, 32]


@torch.no_grad()
def test_swin_maps_with_as_many_rows_as_channels() -> None:
    options = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "img_size": [128, 64]}
    backbone = Backbone(BackboneConfig(name="swin_tiny_patch4_window7_224", options=options, strides=[8, 16]))
    maps = backbone(torch.randn(1, 3, 128, 64))
    assert [tuple(m.shape) for m in maps] == [(1, 16, 16, 8), (1, 32, 8, 4)]


@torch.no_grad()
@pytest.mark.parametrize("stage", ["plain", "dilated"])
def test_dilation_equals_torchvision(stage: str) -> None:
    """In torchvision the first block of a stage keeps the previous stage's dilation, and the others double it."""
    dilated = stage == "dilated"
    backbone = Backbone(BackboneConfig(name="resnet50", strides=[16] if dilated else [32], dilation=dilated)).eval()
    reference = torchvision.models.resnet50(replace_stride_with_dilation=[False, False, dilated]).eval()
    reference = torchvision.models._utils.IntermediateLayerGetter(reference, {"layer4": "map"})
    perturbed(backbone)
    missing, _ = reference.load_state_dict(backbone.body.state_dict(), strict=False)
    assert missing == []
    images = torch.randn(1, 3, 96, 128)
    expected = reference(images)["map"]
    (actual,) = backbone(images)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


GMACS = {  # DETR's table 1 and Deformable DETR's README
    "detr_r50": 86,
    "detr_r50_dc5": 187,
    "deformable_detr_r50_single_scale": 78,
    "deformable_detr_r50_single_scale_dc5": 128,
    "deformable_detr_r50": 173,
    "deformable_detr_r50_refine": 173,
    "deformable_detr_r50_two_stage": 173,
}


@pytest.mark.parametrize("preset", GMACS)
def test_cost_as_published(preset: str) -> None:
    """Published figures are means over COCO images, of about 800 x 1120 pixels."""
    with torch.device("meta"):
        model = models.create(preset).eval()
        cost = count_modules(model, torch.empty(1, 3, 800, 1120))
    assert cost[""].macs / 1e9 == pytest.approx(GMACS[preset], rel=0.03)
