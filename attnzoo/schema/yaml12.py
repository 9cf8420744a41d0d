"""YAML as version 1.2 reads it: `on` and `yes` are words, `3:4` is text, `010` is ten and `1e-4` a number.

PyYAML speaks 1.1, where these are a boolean, 184 (base 60), eight and text.
"""

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from attnzoo.errors import UserError

_CORE = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


class _Core:
    """The implicit types of YAML 1.2's core schema, for a loader or a dumper."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}


for _type, (_pattern, _first) in _CORE.items():
    for _character in _first:
        _Core.yaml_implicit_resolvers.setdefault("" if _character == "\0" else _character, []).append(
            (f"tag:yaml.org,2002:{_type}", re.compile(rf"(?:{_pattern})\Z"))
        )


class _Loader(_Core, yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base class, but a key that is a list or a mapping, or that stands twice, is an error."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(node.value)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


class _Dumper(_Core, getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:
        return True


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError, with the line, for anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file ({error.reason} at byte {error.start})") from None
    content = _parse(text, str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, found {'nothing' if content is None else repr(content)}")
    return content


def value(text: str, where: str) -> Any:
    """What `text` means as the value of an override: a scalar, a quoted string, `[a, b]` or `{a: b}`.

    Anything else stays the text that it is: no comments, anchors, tags or block style.
    """
    if text[:1] in ("[", "{", '"', "'"):
        return _parse(text, where)
    for _, pattern in _Core.yaml_implicit_resolvers.get(text[:1], []):
        if pattern.match(text):
            return _parse(text, where)
    return text


def dump(content: dict[str, Any]) -> str:
    """`content` as a file that `read` reads back as it is."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {str(error).splitlines()[0]}") from None
