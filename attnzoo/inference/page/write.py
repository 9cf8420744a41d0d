"""Writes the interactive page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from attnzoo.inference.observe import Observation
from attnzoo.inference.page.encode import encode_observation
from attnzoo.page import render_page
from attnzoo.rundir.folder import atomic_write

MAX_BYTES = 24 * 2**20  # of all attentions, before they are compressed


def write_page(
    path: Path,
    observed: Mapping[str, Sequence[Observation]],
    names: Sequence[str],
    title: str,
    start: Mapping[str, Any] | None = None,
) -> None:
    """Write one HTML file that needs no other.

    `observed`: of each model, by its name, the same pictures; `names`: of the pictures. `start`: what is shown first,
    by the names of the script's state. Where all queries would take more than MAX_BYTES, some are left out.
    """
    content = render(observed, names, title, start)
    with atomic_write(path) as file:
        file.write(content)


def render(
    observed: Mapping[str, Sequence[Observation]],
    names: Sequence[str],
    title: str,
    start: Mapping[str, Any] | None = None,
    max_bytes: int = MAX_BYTES,
) -> str:
    """The page as text."""
    count = sum(len(one.records) for pictures in observed.values() for one in pictures)
    budget = max_bytes // max(count, 1)
    data = {
        "pictures": list(names),
        "models": [
            {"name": name, "pictures": [encode_observation(one, budget) for one in pictures]}
            for name, pictures in observed.items()
        ],
        "start": dict(start or {}),
    }
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return render_page("attnzoo.inference.page", {"title": title, "data": Markup(text)})
