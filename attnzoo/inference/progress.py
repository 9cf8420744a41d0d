"""A progress bar on a terminal."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def progress(items: Iterable[T], total: int, what: str = "images") -> Iterator[T]:
    """The items, with a progress bar on standard error if that is a terminal."""
    console = Console(stderr=True)
    yield from track(items, what, total, console=console, disable=not console.is_terminal, transient=True)
