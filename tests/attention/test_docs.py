"""The pages on attentions agree with the code."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from attnzoo import attention
from attnzoo.geometry import Role
from attnzoo.schema import yaml12

PAGES = Path(__file__).parents[2] / "docs" / "attentions"
PAGE = {"deform": "deformable", "ms_deform": "deformable"}  # the others have the name of the attention
OPTION = re.compile(r"^\| `(\w+)`(?: \(`(\w+)`\))? \| (.*?) \|", re.MULTILINE)

ROW = re.compile(r"^\| \[(.+?)\]\(\w+\.md\) \| .*? \| (\w+) \| (\w+) \| (\w+) \|", re.MULTILINE)


def page(name: str) -> str:
    return (PAGES / f"{PAGE.get(name, name)}.md").read_text()


def documented(name: str) -> dict[str, Any]:
    """The options of an attention that its page lists, with the default in the second column."""
    rows = OPTION.findall(page(name))
    return {option: yaml12.parse_value(text.strip("`"), option) for option, only, text in rows if only in ("", name)}


def options(name: str) -> dict[str, Any]:
    parameters = inspect.signature(attention.ATTENTIONS.get(name).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize("name", attention.names())
def test_documented_options_match_the_code(name: str) -> None:
    actual, expected = documented(name), options(name)
    assert actual.keys() == expected.keys()
    for option, default in expected.items():
        if default is not None:  # the page says in words what null means
            assert actual[option] == default, option


@pytest.mark.parametrize("name", attention.names())
def test_page_is_complete(name: str) -> None:
    text = page(name)
    for part in ("**Cost**", "**Supported roles**", "**Differences from the published code**", "| option | default |"):
        assert part in text, part
    assert re.search(r"— .+ (19|20)\d\d", text), "no source"
    figures = re.findall(r"!\[.+\]\((.+\.png)\)", text)
    assert [Path(figure).name.startswith("scene-") for figure in figures] == [False, True]
    assert all((PAGES / figure).is_file() for figure in figures)
    assert "erdicts** " in text


def test_overview_lists_the_supported_roles() -> None:
    text = (PAGES / "README.md").read_text()
    listed = {}
    for names, *cells in ROW.findall(text):
        supported = dict(zip((Role.ENCODER, Role.DECODER, Role.STAGE), cells, strict=True))
        roles = {role for role, cell in supported.items() if cell == "yes"}
        listed |= dict.fromkeys(re.findall(r"`(\w+)`", names), roles)
    assert listed == {name: set(attention.ATTENTIONS.get(name).roles) for name in attention.names()}
