"""Workers for several runs, one after the other, in one group of processes: run by torchrun with RUN_DIRs."""

import sys

from attnzoo.engine import distributed
from attnzoo.errors import ExitCode
from attnzoo.worker.train import train_run

if __name__ == "__main__":
    for path in sys.argv[1:]:
        if train_run(path) != ExitCode.OK:
            sys.exit(1)
    distributed.shutdown()
