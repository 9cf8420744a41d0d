"""sweep.json, the ledger of a sweep: its runs, how often each was started, and the SLURM jobs that have them.

    {"experiment": FILE,
     "runs": {NAME: {"variant": NAME or null, "overrides", "labels", "seed", "digest", "attempts",
                     "submission": NUMBER, "task": INDEX,      once it was submitted
                     "cancelled": SECONDS}},                   when it was cancelled, until it is started again
     "submissions": {NUMBER: {"job": ID or null, "runs": [NAME], "time": SECONDS}},
     "local": {"host", "pid"}}                                 the process that works on the sweep here, or did last

Imports neither torch nor omegaconf.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attnzoo.errors import UserError
from attnzoo.rundir.folder import atomic_write

NAME = "sweep.json"
COMMENT = "attnzoo "  # begins the comment of a job; its submission's folder follows


class Ledger:
    """The ledger of the sweep in `sweep`, whether it exists or not."""

    def __init__(self, sweep: Path):
        self.sweep = sweep
        self.path = sweep / NAME

    def read(self) -> dict[str, Any]:
        """All of it, without runs where there is no ledger yet. Raises UserError where it is damaged."""
        empty: dict[str, Any] = {"experiment": "", "runs": {}, "submissions": {}}
        try:
            content = empty | json.loads(self.path.read_text())
            _ = {**content["runs"], **content["submissions"]}
        except FileNotFoundError:
            return empty
        except (json.JSONDecodeError, TypeError):
            raise UserError(f"{self.path}: damaged; move it away, and it is made anew") from None
        return content

    @contextmanager
    def changing(self) -> Iterator[dict[str, Any]]:
        """The ledger to be changed in place; it is written at the end, and others wait meanwhile."""
        self.sweep.mkdir(parents=True, exist_ok=True)
        with (self.sweep / ".sweep.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = self.read()
            yield content
            with atomic_write(self.path) as file:
                json.dump(content, file, indent=1)

    def submission_folder(self, number: str) -> Path:
        """Where a submission keeps what its jobs read and write."""
        return self.sweep / "slurm" / number


def job_of(content: dict[str, Any], name: str) -> str | None:
    """The job that the run was last submitted as: `12_3`, `12` if alone; None if never or if the id is not known."""
    entry = content["runs"][name]
    submission = content["submissions"].get(entry.get("submission"))
    if submission is None or submission["job"] is None:
        return None
    return f"{submission['job']}_{entry['task']}" if len(submission["runs"]) > 1 else str(submission["job"])
