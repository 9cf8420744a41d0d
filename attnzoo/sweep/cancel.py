"""Stopping runs for good: they save if there is time, and nothing starts them again but a new submission."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from attnzoo import slurm
from attnzoo.errors import unknown
from attnzoo.report.status import RunStatus, resolve_job_ids, sweep_status
from attnzoo.rundir import process
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.ledger import Ledger


def cancel(sweep: Path, names: Sequence[str]) -> list[str]:
    """Cancel the active runs of a sweep, or those of `names`; returns what was done, a line for each kind.

    Raises UserError for a name that is not a run of the sweep, and slurm.SlurmUnavailable.
    """
    states = {one.name: one for one in sweep_status(sweep)}
    for name in names:
        if name not in states:
            raise unknown("run", name, states).at(str(sweep))
    chosen = [states[name] for name in names or states if states[name].active]
    ledger = Ledger(sweep)
    with ledger.update() as content:
        resolve_job_ids(ledger, content)
        for one in chosen:
            content["runs"][one.name]["cancelled"] = time.time()
    jobs = [one.job for one in chosen if one.job]
    slurm.cancel(jobs)
    here = [one for one in chosen if not one.job and _stop(RunFolder(sweep / one.name), one)]
    elsewhere = [one.name for one in chosen if not one.job and one.state == "running" and one not in here]
    lines = [f"cancelled: {len(chosen)} of {len(states)} runs ({len(jobs)} in SLURM, {len(here)} here)"]
    return lines + [f"{name} runs on another machine, where it has to be cancelled" for name in elsewhere]


def _stop(run: RunFolder, state: RunStatus) -> bool:
    """Ask a run's process on this machine to save and stop."""
    status = run.read_status()
    if state.state != "running" or not process.is_running_here(status):
        return False
    os.kill(status["pid"], signal.SIGTERM)
    return True
