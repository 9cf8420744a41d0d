"""Parameter groups against the published recipes, learning rates of every step, clipping."""

import math

import pytest
import torch
from torch import nn

from attnzoo import models
from attnzoo.engine.config import OptimizerConfig, ScheduleConfig
from attnzoo.engine.optim import build_optimizer, build_schedule, clip_gradients, parameter_groups
from attnzoo.errors import UserError

RECIPE = {"backbone": 0.1, "reference_points": 0.1, "sampling_offsets": 0.1}


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("deformable_detr_r50", 790_018),
        ("deformable_detr_r50_refine", 790_018),
        ("deformable_detr_r50_single_scale", 197_890),
        ("deformable_detr_r50_two_stage", 789_504),
    ],
)
def test_published_group_of_slow_sampling_parameters(preset, count):
    """The size of the x0.1 group of Deformable DETR without its backbone."""
    with torch.device("meta"):
        model = models.create(preset, num_classes=91)
    recipe = {part: factor for part, factor in RECIPE.items() if part != "backbone"}
    groups = parameter_groups(model, OptimizerConfig(lr_multipliers=recipe))
    slow = sum(p.numel() for group in groups if group["lr_scale"] == 0.1 for p in group["params"])
    assert slow == count
    grouped = [p for group in groups for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(grouped) == len({id(p) for p in grouped})


def small() -> nn.Module:
    return nn.ModuleDict({"backbone": nn.Linear(2, 3), "norm": nn.LayerNorm(3), "head": nn.Linear(3, 1)})


def test_decay_of_one_dimensional_parameters_is_an_option():
    model = small()
    config = OptimizerConfig(weight_decay=0.1, decay_1d=False, lr_multipliers={"backbone": 0.5})
    groups = {(g["lr_scale"], g["weight_decay"]): len(g["params"]) for g in parameter_groups(model, config)}
    assert groups == {(0.5, 0.1): 1, (0.5, 0.0): 1, (1.0, 0.0): 3, (1.0, 0.1): 1}
    config.decay_1d = True
    assert {g["weight_decay"] for g in parameter_groups(model, config)} == {0.1}


def test_parameters_are_excluded_from_decay_by_name():
    config = OptimizerConfig(weight_decay=0.1, no_decay=["head.w", "norm"])
    groups = {(g["lr_scale"], g["weight_decay"]): len(g["params"]) for g in parameter_groups(small(), config)}
    assert groups == {(1.0, 0.1): 3, (1.0, 0.0): 3}


def test_other_optimisers_come_from_timm():
    optimizer = build_optimizer(small(), OptimizerConfig(name="lamb", lr=0.4, lr_multipliers={"backbone": 0.5}))
    assert type(optimizer).__name__ == "Lamb"
    assert [group["lr_scale"] for group in optimizer.param_groups] == [0.5, 1.0]
    with pytest.raises(UserError, match=r"unknown optimiser 'lam'; did you mean 'lamb'"):
        build_optimizer(small(), OptimizerConfig(name="lam"))


def test_frozen_parameters_are_in_no_group_and_a_frozen_model_is_rejected():
    model = small()
    model["backbone"].requires_grad_(False)
    assert sum(len(g["params"]) for g in parameter_groups(model, OptimizerConfig())) == 4
    with pytest.raises(UserError, match="no trainable parameters"):
        build_optimizer(model.requires_grad_(False), OptimizerConfig())


def rates(schedule: ScheduleConfig, steps: int) -> list[list[float]]:
    """The learning rate of both groups at every step."""
    optimizer = build_optimizer(small(), OptimizerConfig(lr=0.4, lr_multipliers={"backbone": 0.1}))
    scheduler = build_schedule(optimizer, schedule, steps)
    lrs = []
    for step in range(steps):
        scheduler.step_update(step)
        lrs.append([group["lr"] for group in optimizer.param_groups])
    return [list(group) for group in zip(*lrs, strict=True)]


def test_cosine_warms_up_and_decays_to_zero():
    slow, fast = rates(ScheduleConfig("cosine", warmup=0.2), 20)
    expected = [0.1, 0.175, 0.25, 0.325] + [0.2 * (1 + math.cos(math.pi * t / 16)) for t in range(16)]
    assert fast == pytest.approx(expected)
    assert slow == pytest.approx([0.1 * lr for lr in expected])


def test_warm_up_start_factor_and_minimum_lr_of_cosine():
    slow, fast = rates(ScheduleConfig("cosine", warmup=0.2, warmup_start_factor=0.01, min_lr_ratio=0.1), 20)
    warm = [0.004 + t * (0.4 - 0.004) / 4 for t in range(4)]
    assert fast == pytest.approx(warm + [0.04 + 0.18 * (1 + math.cos(math.pi * t / 16)) for t in range(16)])
    assert slow == pytest.approx([0.1 * lr for lr in fast])


def test_cosine_that_starts_at_step_zero():
    _, fast = rates(ScheduleConfig("cosine", warmup=0.2, warmup_prefix=False), 20)
    expected = [0.1, 0.175, 0.25, 0.325] + [0.2 * (1 + math.cos(math.pi * t / 20)) for t in range(4, 20)]
    assert fast == pytest.approx(expected)


def test_step_schedule_decays_at_its_milestones():
    slow, fast = rates(ScheduleConfig("step", warmup=0.1, milestones=[0.9, 0.5], gamma=0.5), 20)
    assert fast == pytest.approx([0.2, 0.3] + [0.4] * 8 + [0.2] * 8 + [0.1] * 2)
    assert slow == pytest.approx([0.1 * lr for lr in fast])


def test_constant_schedule():
    assert rates(ScheduleConfig("constant"), 5)[1] == pytest.approx([0.4] * 5)


def test_schedule_depends_only_on_the_step():
    optimizer = build_optimizer(small(), OptimizerConfig(lr=0.4))
    scheduler = build_schedule(optimizer, ScheduleConfig("cosine", warmup=0.2), 20)
    scheduler.step_update(13)
    straight = optimizer.param_groups[0]["lr"]
    for step in (1, 19, 13):
        scheduler.step_update(step)
    assert optimizer.param_groups[0]["lr"] == straight


def test_clipping_scales_to_the_maximum_and_returns_the_norm_before():
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(4))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients(parameters, None).item() == pytest.approx(5)
    assert clip_gradients(parameters, 5.1).item() == pytest.approx(5)
    assert parameters[1].grad.item() == 4
    assert clip_gradients(parameters, 0.5).item() == pytest.approx(5)
    assert torch.cat([parameters[0].grad, parameters[1].grad]).norm().item() == pytest.approx(0.5, rel=1e-4)
