"""Hierarchical ViTs: published sizes, every attention in every stage, and use as backbones."""

from typing import Any

import pytest
import torch
from support.models import detection_targets, padded_images, tiny
from torch import Tensor

from attnzoo import attention, models
from attnzoo.attention.neighborhood import NeighborhoodAttention
from attnzoo.errors import UserError
from attnzoo.models import presets
from attnzoo.models.cost import count_modules
from attnzoo.models.detr.losses import SetCriterion
from attnzoo.models.vit.classifier import Classifier

PUBLISHED = {  # parameters, and multiply-accumulates of 224 x 224 pixels in units of 10⁹
    "swin_tiny": (28_288_354, 4.49),
    "swin_small": (49_606_258, 8.74),
    "swin_base": (87_768_224, 15.43),
    "dat_tiny": (28_319_138, 4.563),
    "dat_small": (49_700_402, 8.959),
    "dat_base": (87_881_632, 15.721),
    "dat_base_384": (88_178_272, 49.450),
    "dat_pp_tiny": (23_962_876, 4.3),  # as in the paper; see `difference_to_paper`
    "dat_pp_small": (53_127_366, 9.4),
    "dat_pp_base": (93_690_640, 16.6),
}
SIZES = {"dat_base_384": 384}
ATTENTIONS = [name for name in attention.names() if "stage" in attention.ATTENTIONS.get(name).roles]


def small(**changes: Any) -> Classifier:
    """Two stages of width 16 and 32 with windows of 4 pixels."""
    stages: dict[str, Any] = {
        "stage1": {"dim": 16, "depth": 2, "heads": 2, "first": {"window": 4}, "second": {"window": 4, "shift": 2}},
        "stage2": {"dim": 32, "depth": 2, "heads": 4, "first": {"window": 4}, "second": {"window": 4, "shift": 2}},
        "stage3": {"depth": 0},
        "stage4": {"depth": 0},
        "image_size": 64,
    }
    torch.manual_seed(0)
    return models.create("swin_tiny", num_classes=5, **stages | changes)


def images(height: int = 64, width: int = 48) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_every_preset_is_listed() -> None:
    assert {name for name in models.names(family="vit") if not name.endswith("_pico")} == set(PUBLISHED)


@pytest.mark.parametrize("preset", PUBLISHED)
def test_size_as_published(preset: str) -> None:
    size = SIZES.get(preset, 224)
    with torch.device("meta"):
        model = models.create(preset).eval()
        macs = count_modules(model, torch.empty(1, 3, size, size))[""].macs
    parameters, gmacs = PUBLISHED[preset]
    assert sum(p.numel() for p in model.parameters()) == parameters
    if preset.startswith("dat_pp"):
        assert round((macs + difference_to_paper(model)) / 1e9, 1) == gmacs
    else:
        assert macs / 1e9 == pytest.approx(gmacs, rel=5e-3)


@pytest.mark.parametrize("preset", [name for name in PUBLISHED if "pp" not in name])
def test_windows_are_shifted_as_published(preset: str) -> None:
    """By half a window; where it is odd Swin rounds down, DAT up."""
    settings = presets.vit_config(preset, {})
    for stage in (settings.stage1, settings.stage2):
        window = stage.first.get("window", 7)
        expected = window // 2 if preset.startswith("swin") else -(-window // 2)
        assert (stage.second.get("window", 7), stage.second["shift"]) == (window, expected)


def difference_to_paper(model: Classifier) -> int:
    """Operations of DAT++ at 224 pixels in the paper (arXiv:2309.01430) minus those counted here.

    Like fvcore, the paper counts 5 operations per normalised element and 4 per sampled bias.
    """
    biases = 0
    normalised = 112**2 * model.trunk.patch_embed[0].conv.out_channels
    for index, stage in enumerate(model.trunk.stages):
        size = 56 // 2**index
        for block in stage.blocks:
            attention, dim = block.attention, block.attention.slot.dim
            normalised += 2 * size**2 * dim
            if not isinstance(attention, NeighborhoodAttention):
                normalised += 7**2 * dim
                biases += attention.slot.heads * size**2 * 7**2
    return 5 * normalised + 4 * biases


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_every_attention_works_in_every_stage(name: str, stage: int) -> None:
    model = small(**{f"stage{stage}": {"dim": 16 * stage, "depth": 2, "heads": 2, "second": {"name": name}}})
    logits = model(images())
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    gradients = [p.grad for p in model.trunk.stages[stage - 1].blocks[1].attention.parameters()]
    assert gradients
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert max(gradient.abs().max() for gradient in gradients) > 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "patch_embed": "overlap",
            "downsample": "overlap",
            "mlp_conv": True,
            "local_perception": True,
            "layer_scale": 0.1,
        },
        {"downsample": "conv"},
    ],
    ids=["swin", "overlap", "conv"],
)
@torch.no_grad()
def test_padding_does_not_change_maps(changes: dict[str, Any]) -> None:
    model = small(**changes).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    unpadded = images(32, 48)
    padded, mask = torch.zeros(2, 3, 64, 72), torch.ones(2, 64, 72, dtype=torch.bool)
    padded[:, :, :32, :48], mask[:, :32, :48] = unpadded, False
    for small_map, large_map in zip(model.trunk(unpadded), model.trunk(padded, mask), strict=True):
        height, width = small_map.shape[1:3]
        torch.testing.assert_close(large_map[:, :height, :width], small_map, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("downsample", ["merge", "conv", "overlap"])
@pytest.mark.parametrize("size", [(64, 64), (63, 50), (4, 9), (1, 1)], ids=str)
def test_sizes_are_rounded_up(downsample: str, size: tuple[int, int]) -> None:
    maps = small(downsample=downsample).trunk(images(*size))
    rounded = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8)]
    assert [tuple(m.shape[1:3]) for m in maps] == rounded


@pytest.mark.parametrize("name", ATTENTIONS)
def test_grad_checkpointing_does_not_change_gradients(name: str) -> None:
    gradients = []
    for grad_checkpointing in (False, True):
        stage = {"depth": 2, "heads": 2, "second": {"name": name}, "grad_checkpointing": grad_checkpointing}
        stages = {f"stage{i}": {"dim": 16 * i, **stage} for i in (1, 2)}
        model = small(**stages, drop_path=0.5).train()
        torch.manual_seed(3)
        model(images()).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for stored, recomputed in zip(*gradients, strict=True):
        assert torch.equal(stored, recomputed)


def test_grad_checkpointing_saves_memory() -> None:
    saved = []
    for grad_checkpointing in (False, True):
        stages = {
            f"stage{i}": {"dim": 16 * i, "depth": 2, "heads": 2, "grad_checkpointing": grad_checkpointing}
            for i in (1, 2)
        }
        model, sizes = small(**stages).train(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x.nbytes) or x, lambda x: x):
            model(images())
        saved.append(sum(sizes))
    assert saved[1] < saved[0] / 3


def with_second(name: str) -> Classifier:
    """Windows alternating with another attention, in both stages."""
    stages = {f"stage{i}": {"dim": 16 * i, "depth": 2, "heads": 2, "second": {"name": name}} for i in (1, 2)}
    return small(**stages, drop_path=0.0)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_bfloat16_is_close_to_float32(name: str) -> None:
    model = with_second(name).eval()
    expected = model(images())
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images())
    torch.testing.assert_close(half.float(), expected, atol=0.05 * expected.abs().max().item(), rtol=0.05)


def test_channels_last_does_not_change_logits() -> None:
    model = small().eval()
    expected = model(images())
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images().contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        # half a minute for all of them, beside the contract's clauses of compilation
        *(
            pytest.param(name, "aot_eager", marks=() if name == "dense" else (pytest.mark.slow, pytest.mark.long))
            for name in ATTENTIONS
        ),
        pytest.param("dat", "inductor", marks=(pytest.mark.slow, pytest.mark.long)),
    ],
)
def test_compiles_as_one_graph(name: str, backend: str) -> None:
    """In training, with all gradients."""
    model = with_second(name).train()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    actual, expected = compiled(images()), model(images())
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(logits.square().sum(), list(model.parameters())) for logits in (actual, expected)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_drop_path_increases_linearly() -> None:
    model = small(drop_path=0.3)
    rates = [block.drop_path.drop_prob for stage in model.trunk.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage1": {"depth": 0}}, r"model\.stage1\.depth"),
        ({"stage2": {"heads": 5}}, r"model\.stage2\.heads"),
        ({"stage2": {"pattern": []}}, r"stage2\.pattern = \[\]"),
        ({"stage2": {"pattern": [3]}}, r"stage2\.pattern = 3"),
        ({"stage2": {"second": {"name": "windows"}}}, r"model\.stage2\.second.*'window'"),
        ({"stage2": {"second": {"shfit": 3}}}, r"model\.stage2\.second.*shfit.*shift"),
        ({"stages": 3}, r"unknown key 'stages'"),
        ({"patch_embed": "overlap", "stage1": {"dim": 15, "heads": 3}}, r"model\.stage1\.dim"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_errors_name_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**changes)


def test_feature_info_equals_timm() -> None:
    features = models.features("swin_tiny", out_indices=(1, 3))
    assert features.feature_info.channels() == [192, 768]
    assert features.feature_info.reduction() == [8, 32]
    assert features.feature_info.module_name() == ["stages.1", "stages.3"]
    assert features.trunk.get_submodule("stages.3") is features.trunk.stages[3]
    maps = features(images(64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, 192, 8, 12), (2, 768, 2, 3)]
    for m in maps:  # normalised over channels
        torch.testing.assert_close(m.mean(1), torch.zeros_like(m[:, 0]), atol=1e-5, rtol=0)


def test_unused_stages_are_removed() -> None:
    assert len(models.features("swin_tiny", out_indices=(0, 1)).trunk.stages) == 2


@pytest.mark.parametrize("stages", [(), (4,), (1, 0), (1, 1), (-1,)], ids=str)
def test_invalid_stages_raise(stages: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"expected some of \[0, 1\], ascending"):
        models.features("swin_tiny", out_indices=stages, stage3={"depth": 0}, stage4={"depth": 0})


@pytest.mark.parametrize("make", [models.create, models.features])
def test_unknown_preset_suggests_the_nearest(make: Any) -> None:
    with pytest.raises(UserError, match="unknown preset 'dat_tinny'; did you mean 'dat_tiny'"):
        make("dat_tinny")


STAGES = {
    "stage1": {"dim": 8, "depth": 1, "heads": 2},
    "stage2": {"dim": 16, "depth": 1, "heads": 2},
    "stage3": {"dim": 24, "depth": 1, "heads": 2},
    "stage4": {"dim": 32, "depth": 1, "heads": 2},
}


@pytest.mark.parametrize("detector", models.names(family="detector"))
@pytest.mark.parametrize("preset", PUBLISHED)
def test_backbone_of_every_detector(detector: str, preset: str) -> None:
    """Published detectors with only the name of the backbone changed."""
    strides = presets.detector_config(detector, {}).backbone.strides
    if strides == [16] and presets.detector_config(detector, {}).backbone.dilation:
        with pytest.raises(UserError, match=r"model\.backbone\.dilation"), torch.device("meta"):
            models.create(detector, backbone={"name": preset})
        return
    with torch.device("meta"):
        model = models.create(detector, backbone={"name": preset})
    expected = {4 * 2**i: getattr(presets.vit_config(preset, {}), f"stage{i + 1}").dim for i in range(4)}
    assert model.backbone.channels == [expected[stride] for stride in strides]
    assert all(p.requires_grad for p in model.backbone.parameters())


@pytest.mark.parametrize("preset", PUBLISHED)
def test_detector_with_vit_backbone_trains(preset: str) -> None:
    published = presets.vit_config(preset, {})
    options: dict[str, Any] = {key: dict(stage) for key, stage in STAGES.items()}
    for key in options:
        if getattr(published, key).second["name"] == "dat":
            options[key]["second"] = {"groups": 2}  # must divide the two heads
    model = tiny(backbone={"name": preset, "options": options, "strides": [8, 16], "freeze": None}).train()
    output = model(*padded_images(64, 48))
    SetCriterion(model.config.loss, 5)(output, detection_targets()).total.backward()
    reached = {
        name.split(".")[3] for name, p in model.backbone.named_parameters() if p.grad is not None and "stages" in name
    }
    assert reached == {"0", "1", "2"}


def test_options_of_a_backbone_may_be_dotted() -> None:
    model = tiny(
        backbone={"name": "swin_tiny", "options": {**STAGES, "stage3.dim": 40}, "strides": [16], "freeze": None}
    )
    assert model.backbone.channels == [40]


def test_weights_of_a_classifier_fit_the_backbone(tmp_path: Any) -> None:
    classifier = models.create("swin_tiny", num_classes=3, **STAGES)
    torch.save(classifier.state_dict(), tmp_path / "swin.pt")
    backbone = {"name": "swin_tiny", "options": STAGES, "strides": [16], "freeze": None}
    model = tiny(backbone={**backbone, "weights": str(tmp_path / "swin.pt")})
    for name, tensor in model.backbone.body.trunk.state_dict().items():
        assert torch.equal(tensor, classifier.trunk.state_dict()[name]), name


@pytest.mark.parametrize("number", [0, -3, 2.5])
def test_invalid_number_of_classes_raises(number: float) -> None:
    with pytest.raises(UserError, match="num_classes"):
        models.create("swin_tiny", num_classes=number)
