"""Where reports are printed."""

from rich.console import Console

NON_TTY_WIDTH = 1000  # columns


def console() -> Console:
    """Standard output: as wide as the terminal; a file or pipe has no width to keep to."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=NON_TTY_WIDTH)
