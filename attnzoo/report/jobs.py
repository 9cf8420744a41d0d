"""The SLURM jobs of a sweep's runs, told from other jobs by their comments.

A number in the ledger is not enough: SLURM uses numbers again after its state was lost, after a new installation and
after the highest one, and the ledger in a copy of a sweep has the numbers of the original's jobs.
Imports neither torch nor omegaconf.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from attnzoo import slurm
from attnzoo.rundir.ledger import Ledger, is_comment_of, job_id_of, submission_of
from attnzoo.rundir.rebuild import read_job
from attnzoo.slurm import Job, array_job_id


@dataclass(frozen=True)
class RunJobs:
    """By the names of runs: `own`, the jobs that SLURM knows; `others`, ids in the ledger that are other jobs' now."""

    own: dict[str, Job] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)


def find_jobs(ledger: Ledger, content: dict[str, Any], names: Collection[str]) -> RunJobs:
    """The jobs of the runs `names`; corrects the job ids in the `content` of the ledger. Raises SlurmUnavailable.

    A submission whose recorded job does not have its comment is looked up by it: so is one that SLURM did not confirm,
    as after `SubmissionUncertain` or when the submitter was killed. A job without a known comment counts by its id.
    """
    last = {name: submission for name in names if (submission := submission_of(content, name)) is not None}
    submissions = {content["runs"][name]["submission"]: submission for name, submission in last.items()}
    for number, submission in content["submissions"].items():
        if submission["job"] is None:
            submission["job"] = read_job(ledger.submission_folder(number))
    jobs = _ask(content, names)
    comments = _comments(jobs)
    unconfirmed = [
        number
        for number, submission in submissions.items()
        if not is_comment_of(comments.get(submission["job"], ""), ledger.submission_folder(number))
    ]
    if unconfirmed and _look_up(ledger, submissions, unconfirmed):
        jobs = _ask(content, names)
        comments = _comments(jobs)
    others = {
        number
        for number, submission in submissions.items()
        if (comment := comments.get(submission["job"])) and not is_comment_of(comment, ledger.submission_folder(number))
    }
    found = RunJobs()
    for name in names:
        job = job_id_of(content, name)
        if job is not None and content["runs"][name]["submission"] in others:
            found.others[name] = job
        elif job in jobs:
            found.own[name] = jobs[job]
    return found


def _ask(content: dict[str, Any], names: Collection[str]) -> dict[str, Job]:
    return slurm.jobs({job for name in names if (job := job_id_of(content, name))})


def _comments(jobs: Mapping[str, Job]) -> dict[str, str]:
    """Comments by the ids of jobs and arrays; those that are not known are left out."""
    return {array_job_id(job.id): job.comment for job in jobs.values() if job.comment}


def _look_up(ledger: Ledger, submissions: Mapping[str, dict[str, Any]], numbers: Collection[str]) -> bool:
    """Correct the job ids of submissions by the comments of this user's jobs; whether any was another."""
    jobs, changed = slurm.jobs_by_comment(), False
    for number in numbers:
        folder = ledger.submission_folder(number)
        own = [job for comment, job in jobs.items() if is_comment_of(comment, folder)]  # the newest is the last
        if own and own[-1] != submissions[number]["job"]:
            submissions[number]["job"], changed = own[-1], True
    return changed
