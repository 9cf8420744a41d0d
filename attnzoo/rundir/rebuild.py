"""What the folders of a sweep say of its runs and submissions, for a ledger that was damaged or deleted.

Each submission has a folder, slurm/NUMBER, with

    jobs.json    {"code": FOLDER, "time": SECONDS, "jobs": [{"run": FOLDER, ...}]}: what its jobs run, by array index
    job          the id of the job, or of the array, once sbatch has answered

Imports neither torch nor omegaconf.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from attnzoo.files import read_bytes
from attnzoo.rundir import attempts
from attnzoo.rundir.folder import CONFIG_START, RunFolder, has_types, parse_json

FOLDER, JOBS, JOB = "slurm", "jobs.json", "job"


def submissions(sweep: Path) -> dict[str, dict[str, Any]]:
    """The submissions of a sweep by number, in order, as in its ledger, by their folders; none without any."""
    found = {}
    for number in sorted(filter(str.isdecimal, _names(sweep / FOLDER)), key=int):
        content = read_jobs(sweep / FOLDER / number)
        if content is not None:
            names = [Path(job["run"]).name for job in content["jobs"]]
            found[number] = {"job": read_job(sweep / FOLDER / number), "runs": names, "time": content["time"]}
    return found


def read_jobs(submission: Path) -> dict[str, Any] | None:
    """The content of jobs.json; None if it cannot be read."""
    try:
        content = parse_json(read_bytes(submission / JOBS))
    except OSError:
        return None
    if not has_types(content, {"code": str, "time": int | float, "jobs": list}, ["code", "time", "jobs"]):
        return None
    types = {"run": str, "nodes": int, "processes": int, "retries": int}
    jobs = content["jobs"]
    is_valid = all(has_types(job, types, list(types)) and is_run_name(Path(job["run"]).name) for job in jobs)
    return dict(content) if is_valid else None


def read_job(submission: Path) -> str | None:
    """The id of the job of a submission; None if it is not known."""
    try:
        job = read_bytes(submission / JOB).decode(errors="replace").strip()
    except OSError:
        return None
    return job if job.isdecimal() else None


def is_run_name(name: str) -> bool:
    """Whether this is the name of a folder, in text that can be printed."""
    return name not in ("", ".", "..") and "/" not in name and not any(map(_is_special, name))


def _is_special(character: str) -> bool:
    return character == "\0" or "\ud800" <= character <= "\udfff"  # surrogates stand for bytes that are no text


def rebuild(sweep: Path) -> dict[str, Any]:
    """The runs and the submissions of a ledger, from the folders of a sweep."""
    found = submissions(sweep)
    folders = [run for name in sorted(_names(sweep)) if is_run_name(name) and _is_run(run := RunFolder(sweep / name))]
    runs: dict[str, dict[str, Any]] = {run.path.name: {"attempts": len(attempts.read(run))} for run in folders}
    times: Counter[str] = Counter()
    for number, submission in found.items():  # in order: the last one of a run counts
        for task, name in enumerate(submission["runs"]):
            times[name] += 1
            entry = runs.setdefault(name, {"attempts": 0})
            entry |= {"submission": number, "task": task, "attempts": max(entry["attempts"], times[name])}
    return {"runs": runs, "submissions": found}


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _is_run(run: RunFolder) -> bool:
    """Whether the folder is that of a run: it was started, or its config is one of ours."""
    if os.path.lexists(run.status) or os.path.lexists(run.metrics):
        return True
    try:
        return read_bytes(run.config).startswith(CONFIG_START.encode())
    except OSError:
        return False
