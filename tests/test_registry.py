"""Registries check options against the signature of the constructor; messages say how to fix it."""

from collections.abc import Callable
from typing import Any, Literal

import pytest

from attnzoo.errors import UserError, as_yaml, did_you_mean, plural, unknown
from attnzoo.registry import Registry
from attnzoo.schema import yaml12


class Box:
    def __init__(
        self,
        site: str,
        *,
        width: int = 1,
        scale: float = 1.0,
        sides: tuple[int, ...] = (),
        span: tuple[int, int] = (0, 1),
        kind: Literal["thin", "thick"] = "thin",
        level: int | None = None,
        names: list[str] | None = None,
        weights: dict[str, float] | None = None,
        flag: bool = False,
        anything: Any = None,
    ):
        self.site, self.width = site, width
        if width < 1:
            raise UserError(f"width = {width}: must be at least 1")


def lid(*, height: int) -> int:
    return height


@pytest.fixture
def registry() -> Registry[Callable[..., Any]]:
    registry: Registry[Callable[..., Any]] = Registry("part")
    registry.register("box")(Box)
    registry.register("lid")(lid)
    return registry


def test_builds_classes_and_functions(registry: Registry) -> None:
    assert registry.names() == ["box", "lid"]
    assert (registry.names("*o*"), registry.names("bo")) == (["box"], [])
    box = registry.build("box", "here", width=3)
    assert (box.site, box.width) == ("here", 3)
    assert registry.build("lid", height=2) == 2
    assert set(registry.options("lid")) == {"height"}
    assert "site" not in registry.options("box")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("scale", 2),
        ("sides", [1, 2, 3]),
        ("sides", ()),
        ("span", [3, 4]),
        ("kind", "thick"),
        ("level", None),
        ("level", 0),
        ("names", ["a"]),
        ("weights", {"a": 1}),
        ("flag", True),
        ("anything", object()),
    ],
)
def test_accepts_yaml_values(registry: Registry, option: str, value: Any) -> None:
    registry.check("box", {option: value})


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("width", "3", "expected int"),
        ("width", 3.0, "expected int"),
        ("width", True, "expected int"),
        ("width", None, "expected int"),
        ("scale", "fast", "expected float"),
        ("scale", True, "expected float"),
        ("sides", 3, "expected list of int"),
        ("sides", [1, "2"], "expected list of int"),
        ("sides", "12", "expected list of int"),
        ("span", [1, 2, 3], "expected list of 2 int"),
        ("kind", "wide", "expected 'thin' | 'thick'"),
        ("level", "1", "expected int | null"),
        ("names", [1], "expected list of str | null"),
        ("weights", {"a": "b"}, "expected a mapping of str to float | null"),
        ("flag", 1, "expected bool"),
    ],
)
def test_rejects_wrong_types(registry: Registry, option: str, value: Any, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        registry.check("box", {option: value}, where="model.part")
    assert str(caught.value) == f"model.part.{option} = {as_yaml(value)}: {expected}"
    assert caught.value.keys == (f"model.part.{option}",)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bxo", {}, "part.name: unknown part 'bxo'; did you mean 'box'? (allowed: box, lid)"),
        ("q", {}, "part.name: unknown part 'q' (allowed: box, lid)"),
        (["box"], {}, "part.name: unknown part [box] (allowed: box, lid)"),
        (None, {}, "part.name: unknown part null (allowed: box, lid)"),
        ("lid", {}, "part: part 'lid' needs the option 'height'"),
        (
            "lid",
            {"height": 1, "hieght": 2},
            "part: part 'lid' has no option 'hieght'; did you mean 'height'? (options: height)",
        ),
        ("box", {"width": 0}, "part: width = 0: must be at least 1"),
    ],
)
def test_errors_are_one_line_with_key_and_fix(
    registry: Registry, name: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        registry.build(name, *(["here"] if name == "box" else []), where="part", **options)
    assert str(caught.value) == message


def test_positional_arguments_are_not_options(registry: Registry) -> None:
    with pytest.raises(UserError, match="has no option 'site'"):
        registry.check("box", {"site": "there"})


def test_block_cannot_set_arguments_of_build(registry: Registry) -> None:
    assert registry.build_block({"name": "lid", "height": 2}, where="part") == 2
    for option in ("where", "self", "name_", "args"):
        with pytest.raises(UserError, match=f"part: part 'lid' has no option '{option}'") as caught:
            registry.build_block({"name": "lid", "height": 2, option: 3}, where="part")
        assert caught.value.keys == (f"part.{option}",)
    with pytest.raises(UserError, match="has no option 'self'"):
        registry.build("lid", self=1, height=2)


def test_rejects_constructors_with_variable_arguments(registry: Registry) -> None:
    def loose(**options: int) -> None: ...

    def packed(*sizes: int) -> None: ...

    def untyped(*, size=1): ...

    def clashing(*, where: str = ""): ...

    def named(*, name: str = ""): ...

    for constructor, message in (
        (loose, "would accept misspelt options"),
        (packed, "would accept misspelt options"),
        (untyped, "option 'size' has no type annotation"),
        (clashing, "the option name 'where' is reserved"),
        (named, "the option name 'name' is reserved"),
    ):
        with pytest.raises(TypeError, match=message):
            registry.register("new")(constructor)
    assert "new" not in registry.names()


def test_rejects_a_duplicate_name(registry: Registry) -> None:
    assert registry.register("lid")(lid) is lid
    with pytest.raises(UserError, match=f"part 'lid' is already registered by {lid.__module__}"):
        registry.register("lid")(Box)
    assert registry.get("lid") is lid


def test_nearest_names() -> None:
    assert did_you_mean("ms_defrom", ["dense", "ms_deform"]) == "; did you mean 'ms_deform'?"
    assert did_you_mean("xyz", ["dense"]) == ""
    assert str(unknown("thing", "a", [])) == "unknown thing 'a' (allowed: none)"
    assert did_you_mean("MS_Deform", ["dense", "ms_deform"]) == "; did you mean 'ms_deform'?"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1e-5, "1e-05"),
        (float("-inf"), "-.inf"),
        ("a b", "'a b'"),
        ("it's\n", '"it\'s\\n"'),
        ({"name": "dense", "window": None, "bias": False}, "{name: dense, window: null, bias: false}"),
        ((1, "x", "null", "2", [{"a": "b c"}]), "[1, x, 'null', '2', [{a: 'b c'}]]"),
        ({}, "{}"),
    ],
)
def test_values_in_messages_are_yaml(value: Any, text: str) -> None:
    assert as_yaml(value) == text
    read = yaml12.parse_value(text, "")
    assert read == (list(value) if isinstance(value, tuple) else value)


def test_numbers_agree_with_their_nouns() -> None:
    assert [plural(number, "run") for number in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]
    assert [plural(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]
