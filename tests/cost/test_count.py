"""Parameters and FLOPs by part, against formulas; published figures."""

import math
from pathlib import Path

import pytest
import torch
from support.models import CLASSES, tiny
from torch import nn

from attnzoo import models
from attnzoo.attention import ATTENTIONS
from attnzoo.attention.dat import DeformableKeyValueAttention
from attnzoo.cost.count import count, part_of
from attnzoo.cost.published import TABLE, published
from attnzoo.cost.subject import Subject
from attnzoo.cost.target import find_target
from attnzoo.geometry import Layout
from attnzoo.models import presets
from attnzoo.rundir.costs import VariantCosts
from attnzoo.schema import yaml12

DOCS = Path(__file__).parents[2] / "docs" / "costs.md"
SIZE = (64, 96)
TOKENS = (SIZE[0] // 16) * (SIZE[1] // 16)
DIM, FFN, QUERIES, LAYERS = 32, 48, 6, 2  # of `tiny`, whose encoder has one layer


def count_tiny(**overrides: object) -> VariantCosts:
    return count("tiny", Subject(tiny(**overrides).config, CLASSES, SIZE))


def parts(costs: VariantCosts) -> dict[str, tuple[int, int]]:
    """Parameters and MACs by part."""
    return {module.name: (module.params, round(1e9 * module.gflops)) for module in costs.modules}


def test_detector_by_formulas() -> None:
    found = parts(count_tiny(encoder={"attention": {"name": "dense"}}))
    dense = 4 * DIM * DIM + 4 * DIM
    assert found["encoder attention"] == (dense, 4 * TOKENS * DIM**2 + 2 * TOKENS**2 * DIM)
    ffn = 2 * DIM * FFN + DIM + FFN
    assert found["encoder FFN"] == (ffn, TOKENS * 2 * DIM * FFN)
    assert found["encoder norms"] == (4 * DIM, 0)
    self_attention = 4 * QUERIES * DIM**2 + 2 * QUERIES**2 * DIM
    assert found["decoder self-attention"] == (LAYERS * dense, LAYERS * self_attention)
    assert found["decoder FFN"] == (LAYERS * ffn, LAYERS * QUERIES * 2 * DIM * FFN)
    assert found["decoder norms"] == (LAYERS * 6 * DIM, 0)
    samples = 4 * 4  # heads and points, on one level
    cross = (QUERIES + TOKENS) * DIM**2 + QUERIES * DIM * samples * 3 + QUERIES * 4 * DIM * 4
    cross_params = 2 * (DIM * DIM + DIM) + 3 * (DIM * samples + samples)
    assert found["decoder cross-attention"] == (LAYERS * cross_params, LAYERS * cross)
    head = CLASSES * DIM + 2 * DIM**2 + 4 * DIM
    assert found["heads"] == (head + CLASSES + 2 * DIM + 4, LAYERS * QUERIES * head)  # one head for all layers
    assert found["queries"] == (QUERIES * 2 * DIM + 2 * DIM + 2, QUERIES * 2 * DIM)


def test_classifier_by_formulas() -> None:
    """swin_tiny at 56 x 84 pixels: maps of 14 x 21, 7 x 11, 4 x 6 and 2 x 3; windows of 7 pixels."""
    costs = count("swin", find_target("swin_tiny").subjects["swin_tiny"].at((56, 84)))
    found = parts(costs)
    maps, dims, depths = ((14, 21), (7, 11), (4, 6), (2, 3)), (96, 192, 384, 768), (2, 2, 6, 2)
    for number, ((h, w), dim, depth) in enumerate(zip(maps, dims, depths, strict=True), start=1):
        keys = min(h, 7) * min(w, 7)
        assert found[f"stage {number} attention"][1] == depth * h * w * (4 * dim**2 + 2 * keys * dim)
        assert found[f"stage {number} MLP"] == (depth * (8 * dim**2 + 5 * dim), depth * h * w * 8 * dim**2)
        assert found[f"stage {number} norms"] == (depth * 4 * dim, 0)
    assert found["patch embedding"][1] == 14 * 21 * 96 * 48
    assert found["stage 2 downsampling"] == (4 * 96 * 192 + 2 * 4 * 96, 7 * 11 * 4 * 96 * 192)
    assert found["head"] == (2 * 768 + 768 * 1000 + 1000, 768 * 1000)
    padded = 7 * 14 - 7 * 11  # of stage 2, to two windows
    extra = next(module.extra_gflops for module in costs.modules if module.name == "stage 2 attention")
    assert round(1e9 * extra) == 2 * (3 * padded * 192**2 + 2 * padded * 49 * 192)


PARTS = ["tiny", "deformable_detr_r50_two_stage", "detr_r50", "dat_pp_tiny", "swin_pico"]


@pytest.mark.parametrize("name", PARTS)
def test_parts_sum_to_the_model(name: str) -> None:
    subject = (
        Subject(tiny().config, CLASSES, SIZE) if name == "tiny" else find_target(name).subjects[name].at((160, 192))
    )
    costs = count(name, subject)
    assert sum(module.params for module in costs.modules) == costs.params
    assert costs.params == sum(p.numel() for p in subject.build().parameters())
    assert sum(module.gflops for module in costs.modules) == pytest.approx(costs.gflops, rel=1e-12)
    assert sum(module.extra_gflops for module in costs.modules) == pytest.approx(costs.extra_gflops, rel=1e-12)
    assert not any(module.name in ("other", "") for module in costs.modules)
    assert not any(module.gflops for module in costs.modules if module.name.endswith("norms"))


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("backbone.body.trunk.stages.0", "backbone"),
        ("encoder.11.attention.value_proj", "encoder attention"),
        ("encoder.0.attention_norm", "encoder norms"),
        ("decoder.3.ffn_norm", "decoder norms"),
        ("decoder_norm", "decoder norms"),
        ("trunk.stages.3.blocks.10.mlp.conv.conv", "stage 4 MLP"),
        ("trunk.stages.0.blocks.1.scale1", "stage 1 norms"),
        ("heads.classes.0", "heads"),
        ("body.layer1", "body"),
        ("", "other"),
    ],
)
def test_part_of(path: str, part: str) -> None:
    assert part_of(path) == part


@pytest.mark.parametrize("name", ["neighborhood", "window", "dense", "deform"])
def test_part_of_an_attention_is_its_flops(name: str) -> None:
    """The attention of a layer, and what its implementation adds."""
    costs = count_tiny(encoder={"attention": {"name": name}})
    module = next(module for module in costs.modules if module.name == "encoder attention")
    layout = Layout.unpadded([(SIZE[0] // 16, SIZE[1] // 16)], 1)
    attention = tiny(encoder={"attention": {"name": name}}).encoder[0].attention
    assert isinstance(attention, ATTENTIONS.get(name))
    assert round(1e9 * module.gflops) == attention.flops(layout, layout)
    assert round(1e9 * module.extra_gflops) == attention.extra_flops(layout, layout)


def test_every_published_figure_is_of_a_preset() -> None:
    listed = yaml12.read(TABLE)
    assert set(listed) == {name for name in presets.names() if not name.endswith("_pico")}


@pytest.mark.parametrize("preset", list(yaml12.read(TABLE)))
def test_published(preset: str) -> None:
    """FLOPs within 3 % for detectors and 0.5 % for classifiers, else explained; parameters as rounded there."""
    figures = published(preset)
    assert figures is not None
    costs = count(preset, find_target(preset).subjects[preset])
    assert costs.size == figures.size
    tolerance = 0.03 if preset in presets.names(family="detector") else 0.005
    assert (abs(figures.difference(costs)) > tolerance) == bool(figures.explanation)
    assert abs(costs.params / 1e6 - figures.params) < 1  # DETR leaves out frozen layers, 0.2 million
    height, width = figures.size
    difference = f"{100 * figures.difference(costs):+.1f} %".replace("-", "−")
    row = f"| `{preset}` | {height} x {width} | {costs.gflops:.2f} | {figures.gflops:g} | {difference} |"
    assert row in DOCS.read_text(encoding="utf-8")
    if "rounded to one decimal" in figures.explanation:
        assert round(costs.gflops, 1) == figures.gflops
    if "normalised element" in figures.explanation:
        assert round(costs.gflops + normalisation_gflops(preset, figures.size), 1) == figures.gflops


def normalisation_gflops(preset: str, size: tuple[int, int]) -> float:
    """5 operations per normalised element, and 4 per bias of DAT that is read from a table."""
    operations = 0

    def add_norm(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal operations
        operations += 5 * output.numel()

    def add_biases(module: DeformableKeyValueAttention, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal operations
        (layout,) = {inputs[1].layout}
        keys = math.prod(module.grids[0].output_shape(layout.spatial_shapes[0]))
        operations += 4 * module.slot.heads * layout.num_tokens * keys

    with torch.device("meta"):
        model = models.create(preset).eval()
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.register_forward_hook(add_norm)
            elif isinstance(module, DeformableKeyValueAttention):
                module.register_forward_hook(add_biases)
        model(torch.empty(1, 3, *size))
    return operations / 1e9
