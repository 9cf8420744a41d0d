"""Describe the failure of a clause in one line."""

import inspect
import re
import traceback
from pathlib import Path
from typing import Any

from attnzoo.contract.expect import Violation

MAX_LENGTH = 400  # characters


def explain(error: Exception, attention: Any) -> str:
    """The message of a Violation; for other errors also their type and the line of the attention's file."""
    text = str(error)
    if not isinstance(error, Violation):
        first_line = next((line.strip() for line in text.splitlines() if line.strip()), "")
        text = f"{_location(error, attention)}{type(error).__name__}{f': {first_line}' if first_line else ''}"
    line = " ".join(" ".join([text, *getattr(error, "__notes__", ())]).split())
    return line if len(line) <= MAX_LENGTH else f"{line[: MAX_LENGTH - 1]}…"


def _location(error: Exception, attention: Any) -> str:
    """`"file.py:12, in forward: "`, the innermost line of the attention's file, or an empty string."""
    try:
        path = inspect.getfile(attention)
    except TypeError:
        return ""
    # Errors of torch.compile quote the user's line in their message.
    quoted = re.findall(rf'File "{re.escape(path)}", line (\d+), in (\w+)', str(error))
    frames = [(str(f.lineno), f.name) for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    if not quoted and not frames:
        return ""
    line, function = (quoted or frames)[-1]
    return f"{Path(path).name}:{line}, in {function}: "
