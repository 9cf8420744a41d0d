"""A worker whose rank 1 fails at its third step: run by torchrun with RUN_DIR."""

import os
import sys

from attnzoo.engine.trainer import Trainer
from attnzoo.worker.train import train_run

if __name__ == "__main__":
    inner = Trainer._train_step

    def step(self, batches):
        if self.step == 2 and os.environ["RANK"] == "1":
            raise RuntimeError("injected failure")
        inner(self, batches)

    Trainer._train_step = step
    sys.exit(train_run(sys.argv[1]))
