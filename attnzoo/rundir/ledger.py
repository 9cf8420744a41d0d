"""sweep.json, the ledger of a sweep: its runs, how often each was started, and their SLURM jobs.

    {"experiment": FILE,
     "comparison": {"baseline", "aa", "margin", "looks"},      how the runs are compared: report.runs.SweepPlan
     "runs": {NAME: {"variant": NAME or null, "variant_name", "overrides", "labels", "seed", "digest", "attempts",
                     "submission": NUMBER, "task": INDEX,      once submitted
                     "cancelled": SECONDS}},                   when it was cancelled; removed by the next start
     "submissions": {NUMBER: {"job": ID or null, "runs": [NAME], "time": SECONDS}},
     "local": {"host", "pid"}}                                 the local launcher, running or last

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

FILENAME = "sweep.json"
JOB_COMMENT_PREFIX = "attnzoo "  # of the comment of a job; the folder of its submission follows


class Ledger:
    """The ledger of the sweep in `sweep`, whether it exists or not."""

    def __init__(self, sweep: Path):
        self.sweep = sweep
        self.path = sweep / FILENAME

    def read(self) -> dict[str, Any]:
        """The content; no runs if there is no ledger yet. Raises UserError if it is corrupt."""
        empty: dict[str, Any] = {"experiment": "", "runs": {}, "submissions": {}}
        try:
            content = empty | json.loads(self.path.read_text(encoding="utf-8"))
            _ = {**content["runs"], **content["submissions"]}
        except FileNotFoundError:
            return empty
        except (json.JSONDecodeError, TypeError):
            raise UserError(f"{self.path}: corrupt; delete it to recreate it") from None
        return content

    @contextmanager
    def update(self) -> Iterator[dict[str, Any]]:
        """Locked read-modify-write: change the yielded content in place; it is written at the end."""
        self.sweep.mkdir(parents=True, exist_ok=True)
        with (self.sweep / ".sweep.lock").open("a", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = self.read()
            yield content
            with atomic_write(self.path) as file:
                json.dump(content, file, indent=1)

    def submission_folder(self, number: str) -> Path:
        """The folder with the job files of a submission."""
        return self.sweep / "slurm" / number


def job_id_of(content: dict[str, Any], name: str) -> str | None:
    """The SLURM job of a run: `12_3` in an array, else `12`; None if never submitted or not known."""
    entry = content["runs"][name]
    submission = content["submissions"].get(entry.get("submission"))
    if submission is None or submission["job"] is None:
        return None
    return f"{submission['job']}_{entry['task']}" if len(submission["runs"]) > 1 else str(submission["job"])
