import math
from pathlib import Path

import pytest

from attnzoo.errors import UserError
from attnzoo.schema import yaml12


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", 4),
        ("+5", 5),
        ("-3", -3),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        ("1e-4", 1e-4),
        (".5", 0.5),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        (".inf", math.inf),
        ("3:4", "3:4"),
        ("on", "on"),
        ("no", "no"),
        ("4,8", "4,8"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("nan", "nan"),
        ("a: b", "a: b"),
        ("a # b", "a # b"),
        ("*x", "*x"),
        ("!tag", "!tag"),
        ("'4'", "4"),
        ('"on"', "on"),
        ("[1, 2e-3, on]", [1, 2e-3, "on"]),
        ("{name: dense, x: [1]}", {"name": "dense", "x": [1]}),
    ],
)
def test_value(text: str, expected: object) -> None:
    actual = yaml12.parse_value(text, "command line")
    assert actual == expected
    assert type(actual) is type(expected)


def test_dump_round_trips(tmp_path: Path) -> None:
    words = ["1e-4", "on", "010", "3:4", "null", "", "=", "<<", "2026-01-01", "x: y", "a\nb", "'", "true", ".5", "~"]
    content = {"words": words, "numbers": [1e-5, 1e20, -0.0, 3], "none": None, "yes": True, "nested": {"a": {}}}
    path = tmp_path / "x.yaml"
    path.write_text(yaml12.dump(content))
    assert yaml12.read(path) == content


@pytest.mark.parametrize(
    "text",
    ["a\nb", "a\u2028b \u2029", "a\x85\x1b", "\r", "é \U0001f600", "word " * 99, "a: b #c", "1e-4", "", "\\ ' \""],
)
def test_dumped_text_is_one_line(tmp_path: Path, text: str) -> None:
    line = yaml12.dump_text("key", text)
    assert len(line.splitlines()) == 1
    (tmp_path / "x.yaml").write_text(f"block:\n    {line}  # comment\n", encoding="utf-8")
    assert yaml12.read(tmp_path / "x.yaml") == {"block": {"key": text}}


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a: 1\nb: [1\nc: 2\n", 3, "expected"),
        ("a: 1\na: 2\n", 2, "duplicate key 'a'"),
        ("a: 1\n[b]: 2\n", 2, "a key must be a scalar"),
        ("a: 1\n? {b: 1}\n: 2\n", 2, "a key must be a scalar"),
        ("a: 1\n\tb: 2\n", 2, "a tab character|cannot start any token"),
    ],
)
def test_invalid_yaml_errors_name_the_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        yaml12.read(path)
    assert str(caught.value).startswith(f"{path}:{line}: not valid YAML")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "word"])
def test_file_without_keys_is_rejected(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="expected a mapping"):
        yaml12.read(path)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
DEEP = "a0: &a0 []\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 65))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: !!int abc\n", ":1: not valid YAML: 'abc' is not of type int"),
        ("a: 1\nb: !!float x\n", ":2: not valid YAML: 'x' is not of type float"),
        ("a: !!bool x\n", ":1: not valid YAML: 'x' is not of type bool"),
        ("a: !!timestamp x\n", ":1: not valid YAML: a scalar of type timestamp"),
        ("a: !!map x\n", ":1: not valid YAML: a scalar of type map"),
        ("a: !!seq x\n", ":1: not valid YAML: a scalar of type seq"),
        ("a: !!str [x]\n", ":1: not valid YAML: a sequence of type str"),
        ("a: !!set {x}\n", ":1: not valid YAML: a mapping of type set"),
        ("a: 1\nb: !!omap [x]\n", ":2: not valid YAML: a sequence of type omap"),
        ("a: !!python/name:os.system x\n", ":1: not valid YAML: a scalar of type python/name:os.system"),
        (f"a: {'9' * 400}\n", ":1: not valid YAML: an integer of more than 100 digits"),
        (f"a: 0x{'f' * 5000}\n", ":1: not valid YAML: an integer of more than 100 digits"),
        (f"a: {'[' * 300}{']' * 300}\n", ":1: not valid YAML: nested deeper than 64 levels"),
        (DEEP, f":{DEEP.count(chr(10))}: not valid YAML: nested deeper than 64 levels"),
        ("a: &a [*a]\n", ":1: not valid YAML: an alias of what contains it"),
        ("a: &a {b: [*a]}\n", ":1: not valid YAML: an alias of what contains it"),
        (f"a: {'[' * 1500}{']' * 1500}\n", ": not valid YAML: nested too deep"),
        (f"a: {'{a: ' * 1500}1{'}' * 1500}\n", ": not valid YAML: nested too deep"),
        (BOMB, ": not valid YAML: more than 100,000 values, with those of aliases"),
    ],
)
def test_hostile_files_are_one_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        yaml12.read(path)
    assert str(caught.value) == f"{path}{problem}"


def test_aliases_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: &a [1, {b: 2}]\nc: [*a, *a]\n")
    assert yaml12.read(path) == {"a": [1, {"b": 2}], "c": [[1, {"b": 2}]] * 2}
