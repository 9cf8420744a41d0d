"""YAML 1.2: `on`, `yes` and `3:4` are strings, `010` is 10 and `1e-4` a number.

PyYAML implements 1.1, where they are true, true, 184 (base 60), 8 and a string.
"""

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from attnzoo.errors import UserError, as_yaml
from attnzoo.files import MAX_DEPTH, MAX_DIGITS, read_text, reason

_CORE = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


NO_TEXT = "text with a NUL character, or not in UTF-8"
MAX_FILE = 2**24  # bytes
MAX_VALUES = 100_000  # in a file: some bytes of aliases may stand for gigabytes
TEXT_OF_VALUE = 64  # characters of text that count as one more value

TAG = "tag:yaml.org,2002:"
KINDS: dict[type[yaml.Node], tuple[str, ...]] = {
    yaml.ScalarNode: ("str", *_CORE),
    yaml.SequenceNode: ("seq",),
    yaml.MappingNode: ("map",),
}


class _CoreSchema:
    """The implicit types of YAML 1.2's core schema, for a loader or a dumper."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}


for _type, (_pattern, _first_chars) in _CORE.items():
    for _character in _first_chars:
        _CoreSchema.yaml_implicit_resolvers.setdefault("" if _character == "\0" else _character, []).append(
            (f"{TAG}{_type}", re.compile(rf"(?:{_pattern})\Z"))
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
        if isinstance(node, yaml.ScalarNode) and not is_text(node.value):
            raise yaml.MarkedYAMLError(problem=NO_TEXT, problem_mark=node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            kind = node.tag.rpartition(":")[2]
            problem = f"{str(node.value)[:40]!r} is not of type {kind}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(node.value)
    if len(text) > MAX_DIGITS:
        problem = f"an integer of more than {MAX_DIGITS} digits"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base)


_Loader.add_constructor(f"{TAG}int", _construct_int)


class _Dumper(_CoreSchema, getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:
        return True


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError, with the line, for anything else."""
    try:
        text = read_text(path, MAX_FILE)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None
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
    if not is_text(text):
        raise UserError(f"{source}: {NO_TEXT}")
    if text[:1] in ("[", "{", '"', "'"):
        return _parse(text, source)
    for _, pattern in _CoreSchema.yaml_implicit_resolvers.get(text[:1], []):
        if pattern.match(text):
            return _parse(text, source)
    return text


def is_text(value: str) -> bool:
    """Whether this is text without NUL in UTF-8; surrogates stand for bytes of a command line that are not."""
    return "\0" not in value and not re.search("[\ud800-\udfff]", value)


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


def dump_text(key: str, text: str) -> str:
    """`key: text` on one line, without a line break at its end, that `read` reads back unchanged."""
    options: dict[str, Any] = {"Dumper": _Dumper, "width": MAX_FILE}
    line: str = yaml.dump({key: text}, allow_unicode=True, **options).rstrip("\n")
    if len(line.splitlines()) > 1:  # U+2028 is a line break of YAML 1.1
        line = yaml.dump({key: text}, default_style='"', **options).rstrip("\n")
    return line


def _measure(node: yaml.Node, measured: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """The size of a node in values, with those of its aliases, and its levels; long text counts as several values.

    Raises MarkedYAMLError for an alias of what contains it, too many levels, and a tag that is not of this schema, such
    as `!!timestamp`, or of another kind of value, as in `!!map x`.
    """
    if node.tag.removeprefix(TAG) not in KINDS[type(node)]:
        problem = f"a {node.id} of type {node.tag.removeprefix(TAG)}"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value) // TEXT_OF_VALUE, 0
    if id(node) not in measured:
        measured[id(node)] = -1, 0
        children = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
        below = [_measure(child, measured) for child in children]
        measured[id(node)] = 1 + sum(size for size, _ in below), 1 + max((levels for _, levels in below), default=0)
    size, levels = measured[id(node)]
    if size < 0:
        raise yaml.MarkedYAMLError(problem="an alias of what contains it", problem_mark=node.start_mark)
    if levels > MAX_DEPTH:
        problem = f"nested deeper than {MAX_DEPTH} levels"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    return size, levels


def _load(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is not None and _measure(node, {})[0] > MAX_VALUES:
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
