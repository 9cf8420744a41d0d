"""Variants share the initial values of all tensors that they have in common."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn

from attnzoo import attention, models
from attnzoo.geometry import Role
from attnzoo.models.initialization import init_by_name

SMALL = {
    "dim": 32,
    "heads": 4,
    "ffn": 64,
    "queries": 5,
    "backbone": {"name": "swin_pico", "strides": [8, 16], "norm": "trained", "freeze": []},
    "neck": {"c6": False},
    "encoder": {"layers": 2},
    "decoder": {"layers": 2},
}


def state(role: Role, block: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    if role == Role.STAGE:
        overrides = {"stage3": {"second": block}}
        return models.create("swin_pico", num_classes=5, **overrides).state_dict()
    overrides = SMALL | {role: {"layers": 2, "attention": block}}
    return models.create("deformable_detr_r50", num_classes=3, **overrides).state_dict()


def unequal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """The names of tensors of equal shape that differ."""
    return [key for key in a if key in b and a[key].shape == b[key].shape and not torch.equal(a[key], b[key])]


def block(name: str) -> dict:
    return {"name": name, "level": 0} if name == "deform" else {"name": name}


@pytest.mark.parametrize("role", list(Role), ids=str)
def test_all_pairs_of_attentions_share_their_common_tensors(role):
    names = [name for name in attention.names() if role in attention.ATTENTIONS.get(name).roles]
    states = {name: state(role, block(name)) for name in names}
    for first, second in itertools.combinations(names, 2):
        common = states[first].keys() & states[second].keys()
        assert len(common) > 100
        assert unequal(states[first], states[second]) == [], (first, second)


def test_options_that_change_a_shape_leave_the_other_tensors_of_the_attention_equal():
    few, many = (state(Role.DECODER, {"name": "ms_deform", "points": points}) for points in (1, 4))
    key = "decoder.0.cross_attention.{}.weight"
    assert few[key.format("sampling_offsets")].shape != many[key.format("sampling_offsets")].shape
    assert torch.equal(few[key.format("value_proj")], many[key.format("value_proj")])
    assert unequal(few, many) == []


def test_seeds_and_consecutive_models_differ():
    first, second = (state(Role.DECODER, {"name": "dense"}, seed) for seed in (0, 1))
    assert len(unequal(first, second)) > 50
    torch.manual_seed(0)
    a, b = (models.create("swin_pico", num_classes=5).state_dict() for _ in range(2))
    assert len(unequal(a, b)) > 20


def test_random_numbers_drawn_after_a_model_do_not_depend_on_it():
    draws = []
    for name in ("swin_pico", "dat_pico"):
        torch.manual_seed(4)
        models.create(name, num_classes=5)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


class Initialised(nn.Module):
    """Draws in place, several times, through views, and by rejection."""

    def __init__(self, width: int):
        super().__init__()
        self.other = nn.Linear(3, width)
        self.replaced = nn.Linear(width, 2)
        self.twice = nn.Parameter(torch.empty(4, 4).normal_())
        self.halves = nn.Parameter(torch.zeros(4, 4))
        self.trunc = nn.Parameter(torch.empty(500))
        self.scaled = nn.Parameter(torch.ones(4))
        self.factory = nn.Parameter(torch.randn(4))
        self.copied = nn.Parameter(torch.empty(4, 4))
        with torch.no_grad():
            nn.init.trunc_normal_(self.trunc, std=0.02, a=-0.03, b=0.03)
            nn.init.xavier_uniform_(self.twice)
            self.halves.data[:2].uniform_(1, 2)
            self.halves[2:].uniform_(-2, -1)
            self.scaled.mul_(3)
            self.copied.copy_(self.twice).mul_(2)
        self.replaced = nn.Linear(2, 2)


@pytest.fixture
def initialised() -> list[Initialised]:
    modules = []
    for width in (2, 7):
        torch.manual_seed(1)
        modules.append(init_by_name(partial(Initialised, width)))
    return modules


def test_parameters_of_equal_name_are_equal_however_they_are_drawn(initialised):
    narrow, wide = (module.state_dict() for module in initialised)
    assert narrow.keys() == wide.keys()
    assert unequal(narrow, wide) == []


def test_distributions_stay(initialised):
    for module in initialised:
        assert (module.halves[:2] >= 1).all()
        assert (module.halves[2:] <= -1).all()
        assert 0.01 < module.trunc.std() < 0.02
        assert module.trunc.abs().max() <= 0.03
        assert (module.scaled == 3).all()
        assert torch.equal(module.copied, 2 * module.twice)
        assert module.twice.abs().max() <= (6 / 8) ** 0.5
        draws = [module.halves[:2] - 1, module.halves[2:] + 2, module.factory, module.replaced.weight]
        assert len({tensor.flatten()[0].item() for tensor in draws}) == len(draws)


def test_copies_of_a_module_stay_copies():
    detector = models.create("deformable_detr_r50", num_classes=3, **SMALL)
    first, *rest = detector.heads.classes
    assert rest
    assert all(torch.equal(first.weight, head.weight) for head in rest)
