"""Train what an experiment file describes: `python -m attnzoo.run EXPERIMENT.yaml [key=value …]`."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence

from attnzoo import streams
from attnzoo.environment import is_distributed_launch
from attnzoo.errors import ExitCode, UserError, one_line
from attnzoo.worker.malloc import restart_with_tunables


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(program, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", metavar="EXPERIMENT.yaml", help="an experiment file, or a run's config.yaml")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help="config overrides, such as train.steps=100"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs and their resources, and write nothing")
    parser.add_argument("--only", choices=("failed", "missing", "interrupted"), help="start only runs in this state")
    parser.add_argument("--follow", action="store_true", help="with SLURM: wait, and submit further rounds of seeds")
    return parser


def report_errors(command: Callable[[], int]) -> int:
    """The exit code of `command`; a UserError or an OSError prints one line and gives ExitCode.USER_ERROR."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the C locale cannot encode `±`
    try:
        code = command()
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return ExitCode.USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # as in `attnzoo list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at exit
        return ExitCode.BROKEN_PIPE
    except OSError as error:  # permission, a full disk, a path that is too long
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"error: {one_line(f'{where}{error.strerror or error}')}", file=sys.stderr)
        return ExitCode.USER_ERROR


def _start(args: argparse.Namespace) -> int:
    from attnzoo.sweep.run import run

    return run(args.experiment, args.overrides, args.dry_run, args.only, args.follow)


def main(argv: Sequence[str] | None = None, program: str = "python -m attnzoo.run") -> int:
    """The command line of `python -m attnzoo.run` and `attnzoo run`; `program` is its name in the help."""
    streams.open_missing()
    args = _parser(program).parse_intermixed_args(argv)
    return report_errors(lambda: _start(args))


def restart_under_torchrun() -> None:
    """Under torchrun or srun this process trains: with the settings of malloc that a worker has. Call it first."""
    if is_distributed_launch():
        restart_with_tunables()


if __name__ == "__main__":
    restart_under_torchrun()
    sys.exit(main())
