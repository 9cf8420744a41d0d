"""Building attentions by name: what is rejected, and the messages."""

from typing import Any

import pytest
from torch import Tensor

from attnzoo.attention import ATTENTIONS, Attention, build, names, register
from attnzoo.errors import UserError
from attnzoo.geometry import Pyramid, Queries, Role, Slot


def test_registered_names() -> None:
    assert {"deform", "dense", "ms_deform"} <= set(names())


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("name", ["deform", "dense", "ms_deform"])
def test_builds_in_every_role(name: str, role: Role) -> None:
    attention = build(name, Slot(16, 4, role=role))
    assert isinstance(attention, Attention)
    assert attention.slot.role == role


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ms_defrom", {}, "model.encoder.name: unknown attention 'ms_defrom'; did you mean 'ms_deform'?"),
        ("dense", {"droput": 0.1}, "model.encoder: attention 'dense' has no option 'droput'; did you mean 'dropout'?"),
        ("dense", {"points": 4}, r"model.encoder: attention 'dense' has no option 'points' \(options: dropout, bias\)"),
        ("ms_deform", {"points": "4"}, "model.encoder.points = '4': expected int"),
        ("ms_deform", {"points": True}, "model.encoder.points = true: expected int"),
        ("ms_deform", {"points": -1}, "model.encoder: points = -1: must be at least 1"),
        ("deform", {"level": 0.5}, r"model.encoder.level = 0.5: expected int \| null"),
    ],
)
def test_errors_name_the_key_and_the_remedy(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build(name, Slot(16, 4), where="model.encoder", **options)
    assert "\n" not in str(caught.value)


def test_rejects_a_role_it_does_not_support(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ATTENTIONS, "_constructors", dict(ATTENTIONS._constructors))

    @register("only_grid")
    class OnlyGrid(Attention):
        roles = frozenset({Role.ENCODER, Role.STAGE})

        def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
            return queries.tokens

    assert build("only_grid", Slot(16, 4)).slot.role == Role.ENCODER
    message = (
        r"'only_grid' does not support role decoder \(supported roles: encoder, stage; attentions for decoder: .*dense"
    )
    with pytest.raises(UserError, match=message):
        build("only_grid", Slot(16, 4, role=Role.DECODER))
