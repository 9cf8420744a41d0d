"""Runs attnzoo.run and kills the process after sbatch returns, before the job id is in the ledger."""

import os
import signal
import sys

import submitit

from attnzoo import run

if __name__ == "__main__":
    inner = submitit.SlurmExecutor.submit_array

    def submit_and_die(self, functions):
        inner(self, functions)
        os.kill(os.getpid(), signal.SIGKILL)

    submitit.SlurmExecutor.submit_array = submit_and_die
    sys.exit(run.main(sys.argv[1:]))
