"""YAML 1.2: `on`, `yes` and `3:4` are strings, `010` is 10 and `1e-4` a number.

PyYAML implements 1.1, where they are true, true, 184 (base 60), 8 and a string.
"""

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from attnzoo.errors import UserError, as_yaml

_CORE = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


MAX_VALUES = 100_000  # in a file: some bytes of aliases may stand for gigabytes
TEXT_OF_VALUE = 64  # characters of text that count as one more value


class _CoreSchema:
    """The implicit types of YAML 1.2's core schema, for a loader or a dumper."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}


for _type, (_pattern, _first_chars) in _CORE.items():
    for _character in _first_chars:
        _CoreSchema.yaml_implicit_resolvers.setdefault("" if _character == "\0" else _character, []).append(
            (f"tag:yaml.org,2002:{_type}", re.compile(rf"(?:{_pattern})\Z"))
        )


class _Loader(_CoreSchema, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the base class, but duplicate keys and keys that are no scalars are errors."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a scalar", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key.value!r}", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As the base class, but a scalar that its tag does not fit, such as `!!int abc`, is an error of YAML."""
        if isinstance(node, yaml.ScalarNode) and "\0" in node.value:
            raise yaml.MarkedYAMLError(problem="text with a NUL character", problem_mark=node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            kind = node.tag.rpartition(":")[2]
            problem = f"{str(node.value)[:40]!r} is not of type {kind}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(node.value)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


class _Dumper(_CoreSchema, getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
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
        raise UserError(f"{path}: expected a mapping, found {'nothing' if content is None else as_yaml(content)}")
    return content


def parse_value(text: str, source: str) -> Any:
    """The value of an override: a scalar, a quoted string, `[a, b]` or `{a: b}`.

    Anything else is a string: no comments, anchors, tags or block style. `source` is named in errors.
    """
    if text[:1] in ("[", "{", '"', "'") or "\0" in text:
        return _parse(text, source)
    for _, pattern in _CoreSchema.yaml_implicit_resolvers.get(text[:1], []):
        if pattern.match(text):
            return _parse(text, source)
    return text


def escape(value: Any) -> Any:
    """A value in which OmegaConf finds no interpolation, and which it resolves to `value`."""
    if isinstance(value, dict):
        return {key: escape(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [escape(item) for item in value]
    # a backslash before `${` makes it text; those already there are doubled
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def dump(content: dict[str, Any]) -> str:
    """`content` as YAML that `read` reads back unchanged."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _size(node: yaml.Node | None, sizes: dict[int, int]) -> int:
    """The size of a node in values, with those of its aliases; long text counts as several.

    Raises MarkedYAMLError for an alias of what contains it.
    """
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1 if node is None else 1 + len(node.value) // TEXT_OF_VALUE
    if id(node) not in sizes:
        sizes[id(node)] = -1
        children = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
        sizes[id(node)] = 1 + sum(_size(child, sizes) for child in children)
    if sizes[id(node)] < 0:
        raise yaml.MarkedYAMLError(problem="an alias of what contains it", problem_mark=node.start_mark)
    return sizes[id(node)]


def _load(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if _size(node, {}) > MAX_VALUES:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_VALUES:,} values, with those of aliases")
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _parse(text: str, source: str) -> Any:
    try:
        return _load(text)
    except RecursionError:
        raise UserError(f"{source}: not valid YAML: nested too deep") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        # libyaml counts the end of a text without a newline as another line
        line = f":{min(mark.line + 1, max(len(text.splitlines()), 1))}" if mark else ""
        raise UserError(f"{source}{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None
