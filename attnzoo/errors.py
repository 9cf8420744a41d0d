"""The error for input that a user can correct, and the exit codes of all commands.

Every invalid user input (a key in a YAML file, an option of an attention, a path) raises `UserError`. The command line
prints its message as one line and exits with `ExitCode.USER_ERROR`.
"""

import difflib
import json
import math
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

COMMAND_LINE = "command line"  # the source, in messages, of what is not in a file


class ExitCode(IntEnum):
    """Exit codes of the commands and of the processes that train a run."""

    OK = 0
    FAILED = 1
    USER_ERROR = 2  # nothing was changed
    PEER_LOST = 75  # another process of the same run has exited (EX_TEMPFAIL)
    INTERRUPTED = 130  # 128 + SIGINT
    BROKEN_PIPE = 141  # 128 + SIGPIPE


class UserError(ValueError):
    """Input that a user can correct. The message is one line: where, what is wrong, what is allowed.

    `key` is the full config key at fault, such as "model.encoder.attention.points", or several keys that do not go
    together; the message names them too. `keys` holds them, so that what set them can be looked up.
    """

    def __init__(self, message: str, *, key: str | tuple[str, ...] = ()):
        super().__init__(message)
        self.keys = (key,) if isinstance(key, str) else key

    def at(self, source: str) -> "UserError":
        """The same error with its source (a file, the command line) in front; unchanged if there is none."""
        return UserError(f"{source}: {self}", key=self.keys) if source else self

    def with_options(self, options: Mapping[str, str]) -> "UserError":
        """The same error as the command line says it: `threshold = 2: …` becomes `--threshold 2: …`.

        `options` maps arguments of a function to the options that set them; an error about anything else is unchanged.
        """
        for key in self.keys:
            if key in options and (match := re.match(rf"{re.escape(key)}( = |:)", str(self))):
                separator = " " if match[1] == " = " else ":"
                return UserError(f"{options[key]}{separator}{str(self)[match.end() :]}", key=self.keys)
        return self


@contextmanager
def as_options(**names: str) -> Iterator[None]:
    """Errors about arguments of functions name the options that set them: `as_options(threshold="--threshold")`."""
    try:
        yield
    except UserError as error:
        raise error.with_options(names) from None


def did_you_mean(name: str, allowed: Iterable[str], cutoff: float = 0.5) -> str:
    """`"; did you mean 'x'?"` for the closest allowed name, whatever the case, or an empty string."""
    by_lower = {other.lower(): other for other in reversed(list(allowed))}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def unknown(kind: str, name: Any, allowed: Iterable[str], key: str = "") -> UserError:
    """The error for a name that is not allowed; `key` is the config key that holds it."""
    choices = sorted(allowed)
    hint = did_you_mean(name, choices) if isinstance(name, str) else ""
    message = f"unknown {kind} {as_yaml(name)}{hint} (allowed: {', '.join(choices) or 'none'})"
    return UserError(f"{key}: {message}", key=key) if key else UserError(message)


def check_type(name: str, value: object, types: tuple[type, ...], expected: str) -> None:
    """Raise TypeError unless `value` is an instance of `types`; `name` is the argument, `expected` what it should be.

    True and False are no numbers.
    """
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        article = "an" if type(value).__name__[0] in "aeiou" else "a"
        shown = reprlib.repr(value)
        raise TypeError(f"{name} = {shown}: expected {expected}, not {article} {type(value).__name__}")


def as_yaml(value: Any) -> str:
    """A config value on one line of a message, as YAML spells it: `null`, `true`, `[1, 2]`, `{name: dense}`.

    A string is in quotes, inside a list or a mapping only where YAML would read something else without them.
    """
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_nested(key)}: {_nested(item)}' for key, item in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_nested, value))}]"
    if isinstance(value, str):
        if value.isprintable() and "'" not in value:
            return f"'{value}'"
        # bytes of a command line that are no text are escaped too
        return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace").decode()
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}[str(value)]
    return repr(value)


def _nested(value: Any) -> str:
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w./+-]*", value)
    return value if plain and value.lower() not in ("null", "true", "false") else as_yaml(value)


def describe(error: BaseException) -> str:
    """The first line of an error for a message, with its type where that is needed to understand it."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    telling = isinstance(error, (RuntimeError, ValueError, TypeError, AssertionError, OSError))
    return lines[0] if telling and not isinstance(error, RecursionError) else f"{type(error).__name__}: {lines[0]}"


def one_line(message: str, limit: int = 1000) -> str:
    """A message on one line; the middle of one that quotes more than fits in `limit` characters is left out."""
    line = printable(" ".join(message.split()))
    return line if len(line) <= limit else f"{line[: limit // 2]} … {line[-limit // 2 :]}"


def printable(text: str) -> str:
    """Text for one line of a terminal: control characters, as names in data sets may have, become escapes.

    They could move the cursor, set the title of the window, or add lines that the program did not write.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def printable_lines(text: str) -> str:
    """Text of several lines for a terminal: each is `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def plural(number: int, noun: str, many: str = "") -> str:
    """`"1 run"`, `"2 runs"`; `many` is the plural of a noun that takes more than an s."""
    return f"{number:,} {noun if number == 1 else many or f'{noun}s'}"
