"""sweep.json, the ledger of a sweep: its runs, how often each was started, and their SLURM jobs.

    {"sha256": HASH of the other keys,                         ledgers of earlier versions have none
     "experiment": FILE,
     "comparison": {"baseline", "aa", "margin", "looks"},      how the runs are compared: report.runs.SweepPlan
     "runs": {NAME: {"variant": NAME or null, "variant_name", "overrides", "labels", "seed", "digest", "attempts",
                     "submission": NUMBER, "task": INDEX,      once submitted
                     "cancelled": SECONDS}},                   when it was cancelled; removed by the next start
     "submissions": {NUMBER: {"job": ID or null, "runs": [NAME], "time": SECONDS}},
     "local": {"host", "pid"}}                                 the local launcher, running or last

A submission's folder, slurm/NUMBER, has its runs and its job too: from these and the run folders a ledger that was
damaged or deleted is rebuilt. Imports neither torch nor omegaconf.
"""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attnzoo.errors import UserError
from attnzoo.files import read_bytes
from attnzoo.rundir.folder import atomic_write, has_types, open_lock, parse_json
from attnzoo.rundir.rebuild import FOLDER, is_run_name, rebuild, submissions

FILENAME = "sweep.json"
COMMENT = "attnzoo "  # of a job, before the folder of its submission
_reported: set[Path] = set()  # ledgers whose damage was reported
# Fields and types of a run, of a submission, of the local launcher and of the comparison.
RUN: dict[str, Any] = {
    "variant": str | None,
    "variant_name": str,
    "overrides": dict,
    "labels": dict,
    "seed": int,
    "digest": str,
    "attempts": int,
    "submission": str,
    "task": int,
    "cancelled": int | float,
}
SUBMISSION: dict[str, Any] = {"job": str | None, "runs": list, "time": int | float}
LOCAL: dict[str, Any] = {"host": str, "pid": int, "started": str | None}
COMPARISON: dict[str, Any] = {
    "baseline": str | None,
    "aa": str | None,
    "margin": int | float | None,
    "looks": list | None,
    "include": list,
    "digests": list,
    "costs": bool,
}


class Ledger:
    """The ledger of the sweep in `sweep`, whether it exists or not."""

    def __init__(self, sweep: Path):
        self.sweep = sweep
        self.path = sweep / FILENAME

    def read(self) -> dict[str, Any]:
        """The content; without a ledger, the runs whose folders are there.

        Rebuilt, which is said once on stderr, if it is corrupt, or missing after a submission. Raises UserError if it
        may not be read.
        """
        empty: dict[str, Any] = {"experiment": "", "runs": {}, "submissions": {}}
        submitted = submissions(self.sweep)  # before the ledger, in which a submission is first
        try:
            content = parse_json(read_bytes(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return empty | (self._rebuild("missing") if submitted else rebuild(self.sweep))
        except PermissionError as error:
            raise UserError(f"{self.path}: {error.strerror}") from None
        except OSError as error:
            return empty | self._rebuild(str(error.strerror))
        if not isinstance(content, dict) or "runs" not in content or not _is_valid(empty | content):
            return empty | self._rebuild("corrupt")
        recorded = content.pop("sha256", None)
        if recorded is None and not content["runs"]:  # of no version of ours
            return empty | self._rebuild("corrupt")
        if recorded != _hash(content) and (recorded is not None or submitted):  # earlier versions had neither
            return empty | self._rebuild("changed since it was written")
        if submitted.keys() - content.get("submissions", {}).keys():
            return empty | self._rebuild("older than its last submission")
        return empty | content

    def exists(self) -> bool:
        """Whether there is a ledger, or what it can be rebuilt from."""
        try:
            self.path.lstat()
        except PermissionError:  # `read` says so
            return True
        except OSError:
            return any(rebuild(self.sweep).values())
        return True

    def _rebuild(self, reason: str) -> dict[str, Any]:
        if self.path.absolute() not in _reported:
            _reported.add(self.path.absolute())
            message = f"{self.path}: {reason}; rebuilt from the runs and their jobs"
            lost = "names of variants and the plan of their comparison come back when the experiment is run again"
            print(f"{message}; {lost}", file=sys.stderr)
        return rebuild(self.sweep)

    @contextmanager
    def update(self) -> Iterator[dict[str, Any]]:
        """Locked read-modify-write: change the yielded content in place; it is written at the end."""
        self.sweep.mkdir(parents=True, exist_ok=True)
        with open_lock(self.sweep / ".sweep.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = self.read()
            yield content
            if self.path.is_dir():  # damaged; a file is replaced
                self.path.rename(self.path.with_name(f"{FILENAME}.corrupt"))
            with atomic_write(self.path) as file:
                json.dump({"sha256": _hash(content)} | content, file, indent=1)

    def submission_folder(self, number: str) -> Path:
        """The folder with the job files of a submission."""
        return self.sweep / FOLDER / number


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _is_valid(content: dict[str, Any]) -> bool:
    if not has_types(content, {"experiment": str, "runs": dict, "submissions": dict}):
        return False
    runs, submissions = content["runs"], content["submissions"]
    return (
        all(_is_run(name, entry) for name, entry in runs.items())
        and all(number.isdecimal() and _is_submission(values) for number, values in submissions.items())
        and ("local" not in content or has_types(content["local"], LOCAL, ["host", "pid"]))
        and is_comparison(content.get("comparison", {}))
    )


def _is_run(name: str, entry: Any) -> bool:
    required = ["task"] if isinstance(entry, dict) and "submission" in entry else []
    return has_types(entry, RUN, required) and is_run_name(name)


def _is_submission(values: Any) -> bool:
    if not has_types(values, SUBMISSION, ["job", "runs"]) or not all(isinstance(name, str) for name in values["runs"]):
        return False
    job = values["job"]
    return job is None or (job.isascii() and job.isdecimal())


def is_comparison(values: Any) -> bool:
    """Whether `values` are those of a comparison in the ledger, or in results.json."""
    if not has_types(values, COMPARISON) or not values.keys() <= COMPARISON.keys():
        return False
    texts = [*values.get("include", []), *values.get("digests", [])]
    looks = values.get("looks") or []
    return all(isinstance(text, str) for text in texts) and all(isinstance(look, int) for look in looks)


def job_comment(submission: Path) -> str:
    """The comment of the job of a submission, by its folder: the job is found by it."""
    return f"{COMMENT}{submission.resolve()}"


def is_comment_of(comment: str, submission: Path) -> bool:
    """Whether the comment of a job names the folder of a submission, through whatever links."""
    if not (comment.startswith(COMMENT) and comment.endswith(f"/{submission.name}")):
        return False
    own = job_comment(submission)
    return comment == own or COMMENT + os.path.realpath(comment.removeprefix(COMMENT)) == own


def job_id_of(content: dict[str, Any], name: str) -> str | None:
    """The SLURM job of a run: `12_3` in an array, else `12`; None if never submitted or not known."""
    submission = submission_of(content, name)
    if submission is None or submission["job"] is None:
        return None
    entry = content["runs"][name]
    return f"{submission['job']}_{entry['task']}" if len(submission["runs"]) > 1 else str(submission["job"])


def submission_of(content: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The last submission of a run; None if it was never submitted, or the submission's list says otherwise."""
    entry = content["runs"][name]
    submission: dict[str, Any] | None = content["submissions"].get(entry.get("submission"))
    if submission is None or submission["runs"][entry["task"] : entry["task"] + 1] != [name]:
        return None
    return submission
