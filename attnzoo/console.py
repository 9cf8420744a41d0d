"""Standard output of the command line, through rich."""

from typing import Any

from rich.console import Console
from rich.text import Text

from attnzoo.errors import printable_lines

NON_TTY_WIDTH = 1000  # columns


class PipeConsole(Console):
    """Raises BrokenPipeError where rich would end the program: runs that train must be stopped first.

    Control characters in strings, also in those of tables, become escapes: they may be from the files of others.
    """

    def on_broken_pipe(self) -> None:
        """Called by rich within the handler of the error."""
        self.quiet = True
        raise BrokenPipeError

    def render_str(self, text: str, **options: Any) -> Text:
        """Called by rich for every string that it prints or measures."""
        return super().render_str(printable_lines(text), **options)


def console() -> Console:
    """Standard output: as wide as the terminal, without wrapping in a file or pipe."""
    terminal = PipeConsole(highlight=False, markup=False)  # brackets of paths and messages are text
    return terminal if terminal.is_terminal else PipeConsole(highlight=False, markup=False, width=NON_TTY_WIDTH)
