"""What a SLURM job calls, pickled by submitit: `python -m attnzoo.sweep.pickles FOLDER` writes a missing pickle.

submitit names the pickle after the job once sbatch has answered, and its jobs fail without it. The batch script calls
this module first, in case the submitting process was killed before. Imports no torch.
"""

import os
import sys
import time
from functools import partial
from pathlib import Path

from submitit.core.utils import DelayedSubmission, JobPaths

from attnzoo.rundir import attempts
from attnzoo.rundir.rebuild import JOBS, read_jobs
from attnzoo.sweep.supervise import supervise

WAIT_SECONDS = 5.0  # for the submitting process
POLL_SECONDS = 0.2


def job_function(submission: Path) -> "partial[None]":
    """What submitit pickles and calls on the first node; the same for all tasks of an array."""
    return partial(supervise, str(submission))


def ensure_pickle(submission: Path, job: str) -> str:
    """Write the pickle of a job, `12_3` in an array, unless it appears soon; returns why it cannot be, else ""."""
    path = JobPaths(submission, job_id=job).submitted_pickle
    end = time.monotonic() + WAIT_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            return _write(submission, path)
        time.sleep(POLL_SECONDS)
    return ""


def _write(submission: Path, path: Path) -> str:
    if read_jobs(submission) is None:
        return f"{submission / JOBS}: missing or corrupt; submit the run again"
    delayed = DelayedSubmission(job_function(submission))
    delayed.set_timeout(timeout_min=sys.maxsize, max_num_timeout=1)  # only until the supervisor handles signals itself
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    delayed.dump(temporary)
    temporary.rename(path)
    return ""


if __name__ == "__main__":
    sys.exit(ensure_pickle(Path(sys.argv[1]), attempts.job_id() or "") or None)
