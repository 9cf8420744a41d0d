"""The one kind of error a user causes, and how it is worded.

Everything a user can get wrong (a key in a YAML file, an option of an attention, a path) ends in a
`UserError`. The command line prints its message as one line and exits with code 2.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Input that a user can correct. The message is one line: what, where, what is allowed."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest allowed name, or an empty string."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown(kind: str, name: str, allowed: Iterable[str], where: str = "") -> UserError:
    """The error for a name that is not in a list of names."""
    choices = sorted(allowed)
    place = f"{where}: " if where else ""
    return UserError(
        f"{place}unknown {kind} {name!r}{nearest(name, choices)} (allowed: {', '.join(choices) or 'none'})"
    )
