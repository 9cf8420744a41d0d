"""The console of reports."""

from rich.console import Console

NON_TTY_WIDTH = 1000  # columns


def console() -> Console:
    """Standard output: as wide as the terminal, without wrapping in a file or pipe."""
    terminal = Console(highlight=False, markup=False)  # brackets of paths and messages are text
    return terminal if terminal.is_terminal else Console(highlight=False, markup=False, width=NON_TTY_WIDTH)
