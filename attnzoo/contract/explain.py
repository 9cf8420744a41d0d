"""What went wrong in a clause, in one line."""

import inspect
import re
import traceback
from pathlib import Path
from typing import Any

from attnzoo.contract.expect import Violation

LONGEST = 400  # characters of a reason


def explain(error: Exception, attention: Any) -> str:
    """The reason why a clause fails: what it says, or which line of the attention's file raised what."""
    text = str(error)
    if not isinstance(error, Violation):
        first = next((line.strip() for line in text.splitlines() if line.strip()), "")
        text = f"{_place(error, attention)}{type(error).__name__}{f': {first}' if first else ''}"
    line = " ".join(" ".join([text, *getattr(error, "__notes__", ())]).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _place(error: Exception, attention: Any) -> str:
    """`"file.py:12, in forward: "`, the innermost line of the attention's file, or an empty string."""
    try:
        path = inspect.getfile(attention)
    except TypeError:
        return ""
    # Compilers quote the user's line in the message of their own error.
    quoted = re.findall(rf'File "{re.escape(path)}", line (\d+), in (\w+)', str(error))
    frames = [(str(f.lineno), f.name) for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    if not quoted and not frames:
        return ""
    line, function = (quoted or frames)[-1]
    return f"{Path(path).name}:{line}, in {function}: "
