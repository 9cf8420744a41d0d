"""Cancels runs: they save a checkpoint if time allows and are not requeued."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from attnzoo import slurm
from attnzoo.errors import plural, unknown
from attnzoo.report.status import UNCONFIRMED, RunStatus, existing_ledger, ledger_status
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.lock import is_training_here


def cancel(sweep: Path, names: Sequence[str]) -> list[str]:
    """Cancel the active runs of a sweep, or those in `names`; returns summary lines.

    Raises UserError for a name that is not a run of the sweep, and slurm.SlurmUnavailable.
    """
    ledger = existing_ledger(sweep)
    with ledger.update() as content:
        runs = {run.name: run for run in ledger_status(ledger, content)}
        for name in names:
            if name not in runs:
                raise unknown("run", name, runs, str(sweep))
        named = [runs[name] for name in names or runs]
        selected = [run for run in named if run.active]
        for run in selected:
            content["runs"][run.name]["cancelled"] = time.time()
    jobs = [run.job for run in selected if run.job and run.in_queue]
    slurm.cancel(jobs)
    training = [run for run in selected if not run.in_queue and run.state in ("running", "corrupt")]
    local = [run for run in training if _send_sigterm(sweep, run)]
    remote = [run.name for run in training if run not in local]
    where = f"{plural(len(jobs), 'SLURM job')}, {len(local)} local"
    lines = [f"cancelled: {len(selected)} of {plural(len(runs), 'run')} ({where})"]
    lines += [f"{run.name}: {run.note}; cancel it again then" for run in selected if run.note == UNCONFIRMED]
    others = dict.fromkeys(slurm.array_job_id(run.other_job) for run in named if run.other_job)
    lines += [f"job {job} is not of this sweep, by its comment; left alone" for job in others]
    return lines + [f"{name} is running on another host; cancel it there" for name in remote]


def _send_sigterm(sweep: Path, run: RunStatus) -> bool:
    """Let a run that is training on this host save and stop. Returns whether there was one."""
    folder = RunFolder(sweep / run.name)
    status = folder.read_status()  # of a corrupt run too, or it would not count as active
    if not is_training_here(folder, status):
        return False
    os.kill(status["pid"], signal.SIGTERM)
    return True
