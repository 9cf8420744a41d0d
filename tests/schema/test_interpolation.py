"""Interpolations are resolved, or refused in one line before they take memory or time."""

from typing import Any

import pytest

from attnzoo.errors import UserError
from attnzoo.schema.interpolation import resolve


def chain(length: int, item: str) -> dict[str, Any]:
    """Each key leads twice to the next."""
    return {f"a{i}": item.replace("NEXT", f"a{i + 1}") for i in range(length)} | {f"a{length}": "x"}


@pytest.mark.parametrize(
    "values",
    [
        chain(30, "${NEXT}${NEXT}"),
        chain(30, "${NEXT} ${oc.select:NEXT}"),
        chain(30, "${oc.env:NONE,${NEXT}}${NEXT}"),
        {f"a{i}": {"b": [f"${{a{i + 1}}}"] * 2} for i in range(30)} | {"a30": {"b": ["x"]}},
        {f"a{i}": {"b": f"${{a{i + 1}.b}}${{..a{i + 1}[b]}}"} for i in range(30)} | {"a30": {"b": "x"}},
        {"a": "x" * 10**6, "b": "${a}" * 100},
        {"a": "${a}"},
        {"a": {"b": "${a}"}},
        {"a": "${b}", "b": "${a}"},
        {"a": "${${b}}", "b": "a"},
        {"a": "${oc.select:${b}}", "b": "a"},
        {"a": {"x": "${a.${b}}", "y": 1}, "b": "y"},
    ],
    ids=range(12),
)
def test_what_has_no_end_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^[ab]\d*: interpolations contain themselves, or lead to more than 100,000"):
        resolve(values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"a": "${b.c}", "b": {"c": 3}}, {"a": 3, "b": {"c": 3}}),
        ({"a": {"x": "${.y}-${..b}", "y": 1}, "b": 2}, {"a": {"x": "1-2", "y": 1}, "b": 2}),
        ({"a": "${b.${c}}", "b": {"x": 1}, "c": "x"}, {"a": 1, "b": {"x": 1}, "c": "x"}),
        ({"a": "${b[1]}", "b": [1, 2]}, {"a": 2, "b": [1, 2]}),
        ({"a": "${oc.env:ATTNZOO_NONE,${b}}", "b": "x"}, {"a": "x", "b": "x"}),
        ({"a": r"\${b}", "b": "x"}, {"a": "${b}", "b": "x"}),
        (chain(10, "${NEXT}${NEXT}"), {f"a{i}": "x" * 2 ** (10 - i) for i in range(11)}),
    ],
)
def test_others_are_resolved(values: dict[str, Any], expected: dict[str, Any]) -> None:
    assert resolve(values) == expected


INVALID = ["${none}", "${a.none}", "${", "${oc.env:ATTNZOO_NONE}", "${nosuch:1}", "${oc.decode:'[1'}"]


@pytest.mark.parametrize("text", INVALID)
def test_others_are_one_line(text: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve({"a": text})
    assert str(caught.value).startswith(("a: ", "interpolation: "))
    assert "\n" not in str(caught.value)


def test_environment_that_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNZOO_BYTES", "\udcff")
    with pytest.raises(UserError, match=r"^a: an interpolation gives text with a NUL character, or not in UTF-8"):
        resolve({"a": {"b": ["${oc.env:ATTNZOO_BYTES}"]}})
