"""Train what an experiment file describes: `python -m attnzoo.run EXPERIMENT.yaml [key=value …]`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from attnzoo.errors import UserError

REFUSED, INTERRUPTED, UNREAD = 2, 130, 141


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(program, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", metavar="EXPERIMENT.yaml", help="an experiment file, or a run's config.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="changes, such as train.steps=100 or jobs=2")
    parser.add_argument("--dry-run", action="store_true", help="list the runs, what they ask for, and write nothing")
    parser.add_argument("--only", choices=("failed", "missing", "interrupted"), help="start these runs and no others")
    return parser


def report_errors(command: Callable[[], int]) -> int:
    """The exit code of `command`; what a user can correct is printed as one line, with exit code 2."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # as in `attnzoo list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
        return UNREAD


def _start(given: argparse.Namespace) -> int:
    from attnzoo.sweep.run import run

    return run(given.experiment, given.overrides, given.dry_run, given.only)


def main(argv: Sequence[str] | None = None, program: str = "python -m attnzoo.run") -> int:
    """The command line of `python -m attnzoo.run` and of `attnzoo run`, as help calls it; returns the exit code."""
    given = _parser(program).parse_intermixed_args(argv)
    return report_errors(lambda: _start(given))


if __name__ == "__main__":
    sys.exit(main())
