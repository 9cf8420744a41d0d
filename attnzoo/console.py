"""Standard output of the command line, through rich."""

from rich.console import Console

NON_TTY_WIDTH = 1000  # columns


class PipeConsole(Console):
    """Raises BrokenPipeError where rich would end the program: runs that train must be stopped first."""

    def on_broken_pipe(self) -> None:
        """Called by rich within the handler of the error."""
        self.quiet = True
        raise BrokenPipeError


def console() -> Console:
    """Standard output: as wide as the terminal, without wrapping in a file or pipe."""
    terminal = PipeConsole(highlight=False, markup=False)  # brackets of paths and messages are text
    return terminal if terminal.is_terminal else PipeConsole(highlight=False, markup=False, width=NON_TTY_WIDTH)
