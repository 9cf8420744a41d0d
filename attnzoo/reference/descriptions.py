"""What source code says of config keys and options: comments of dataclass fields, sentences of docstrings."""

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from typing import Any

MAX_SENTENCE = 150  # characters: a longer one is about several options


def field_comments(schema: type[Any]) -> dict[str, str]:
    """The comment of each field of a dataclass and of those that it inherits: in the lines above it, or after it.

    "" for a field without one.
    """
    comments: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        if dataclasses.is_dataclass(cls):
            comments |= _own_comments(cls)
    return {field.name: comments.get(field.name, "") for field in dataclasses.fields(schema)}


def summary(constructor: Callable[..., Any]) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(constructor) or "").split("\n\n")[0].split())


def option_description(constructor: Callable[..., Any], option: str) -> str:
    """What the docstring of a constructor, or of a class that it inherits from, says of an option.

    Its item of the list of options, else its comment in a dataclass, else the first sentence that names it, else "".
    """
    classes = constructor.__mro__[:-1] if inspect.isclass(constructor) else [constructor]
    docstrings = [inspect.cleandoc(cls.__doc__) for cls in classes if cls.__doc__]
    for docstring in docstrings:
        if text := _item(docstring, option):
            return text
    if dataclasses.is_dataclass(constructor) and (comment := field_comments(constructor).get(option)):
        return comment
    for docstring in docstrings:
        for sentence in re.split(r"(?<=[.;])\s+", docstring):
            if f"`{option}`" in sentence and len(sentence) <= MAX_SENTENCE:
                return " ".join(sentence.split()).removeprefix(f"`{option}`: ").rstrip(";.")
    return ""


def _item(docstring: str, option: str) -> str:
    """The text of the list item "- `option`: text", or of one with several options."""
    for match in re.finditer(r"^- ((?:`\w+`(?:, )?)+): ((?:.+)(?:\n  .+)*)", docstring, re.MULTILINE):
        if f"`{option}`" in match[1]:
            return " ".join(match[2].split())
    return ""


def _own_comments(cls: type[Any]) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # such as a class made in a session
        return {}
    lines = source.splitlines()
    by_line = {
        token.start[0]: (token.string.removeprefix("#").strip(), lines[token.start[0] - 1].lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    return {
        node.target.id: " ".join(_comment_lines(by_line, node))
        for node in definition.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _comment_lines(by_line: dict[int, tuple[str, bool]], node: ast.AnnAssign) -> Iterator[str]:
    first = node.lineno
    while by_line.get(first - 1, ("", False))[1]:
        first -= 1
    for line in range(first, (node.end_lineno or node.lineno) + 1):
        if line in by_line and not by_line[line][0].startswith(("noqa", "type:")):
            yield by_line[line][0]
