"""The error for input that a user can correct, and the exit codes of all commands.

Every invalid user input (a key in a YAML file, an option of an attention, a path) raises `UserError`. The command line
prints its message as one line and exits with `ExitCode.USER_ERROR`.
"""

import difflib
from collections.abc import Iterable
from enum import IntEnum


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


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest allowed name, or an empty string."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown(kind: str, name: str, allowed: Iterable[str], key: str = "") -> UserError:
    """The error for a name that is not allowed; `key` is the config key that holds it."""
    choices = sorted(allowed)
    message = f"unknown {kind} {name!r}{did_you_mean(name, choices)} (allowed: {', '.join(choices) or 'none'})"
    return UserError(f"{key}: {message}", key=key) if key else UserError(message)
