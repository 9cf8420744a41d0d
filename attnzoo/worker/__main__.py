"""`python -m attnzoo.worker RUN_DIR` trains one run, alone or under torchrun or srun."""

import sys

from attnzoo import streams
from attnzoo.worker.malloc import restart_with_tunables


def import_modules() -> None:
    """Import what `main` needs, which takes seconds."""
    from attnzoo.engine import distributed  # noqa: F401
    from attnzoo.worker import train  # noqa: F401


def main(run_dir: str) -> int:
    """The exit code of the run."""
    from attnzoo.engine import distributed
    from attnzoo.errors import ExitCode
    from attnzoo.worker.train import train_run

    exit_code = train_run(run_dir)
    if exit_code not in (ExitCode.FAILED, ExitCode.PEER_LOST):
        distributed.shutdown()
    return exit_code


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m attnzoo.worker RUN_DIR")
    streams.open_missing()
    restart_with_tunables()
    sys.exit(main(sys.argv[1]))
