"""What `attnzoo run` prints of the runs of a sweep."""

import os
import sys
from collections.abc import Mapping, Sequence

from rich.table import Table

from attnzoo.console import console
from attnzoo.environment import sources_hash
from attnzoo.errors import UserError, one_line, plural, printable
from attnzoo.report.status import RunStatus
from attnzoo.rundir import attempts
from attnzoo.schema.keys import format_value
from attnzoo.sweep import local
from attnzoo.sweep.expand import RunSpec
from attnzoo.sweep.folder import describe_restarts
from attnzoo.sweep.outcome import ExitKind


def recorded_state(run: RunSpec) -> str:
    """The state of a run by its own files: one of `rundir.folder.STATES`, or corrupt."""
    try:
        status, _ = run.folder.read()
    except UserError:
        return "corrupt"
    return str(status["state"])


def print_restarts(runs: Sequence[RunSpec]) -> None:
    """Print which runs restart from scratch, and why, if any does."""
    if reason := describe_restarts(runs):
        print(printable(reason))


def print_other_sources(runs: Sequence[RunSpec]) -> None:
    """Say in one line which finished runs were trained by other sources: they are neither trained again nor refused."""
    done = [run for run in runs if recorded_state(run) == "done"]
    current = sources_hash()
    sources = [{(found or {}).get("sources", "unknown") for found in attempts.environments(run.folder)} for run in done]
    if other := [found for found in sources if found != {current}]:
        hashes = printable(", ".join(sorted(set.union(*other) - {current})))
        print(
            f"{len(other)} of {len(done)} finished runs were trained by other sources of attnzoo ({hashes}; now "
            f"{current}); delete the folder of a run to train it again"
        )


def print_runs(runs: Sequence[RunSpec], statuses: Mapping[str, RunStatus]) -> None:
    """Print the runs as a table; `statuses` has those in the ledger by the names of their folders."""
    table = Table(title=plural(len(runs), "run"))
    for heading in ("run", "state", "overrides", "folder"):
        table.add_column(heading, overflow="fold")
    for run in runs:
        name = run.folder.path.name
        overrides = ", ".join(f"{key}={format_value(value)}" for key, value in run.overrides.items())
        state = statuses[name].state if name in statuses else recorded_state(run)
        table.add_row(run.name, state, overrides or "none", str(run.folder.path))
    console().print(table)


def already_done(done: int, total: int) -> str:
    """How many of all runs are done, in words."""
    return f"{done} of {plural(total, 'run')} {'is' if total == 1 else 'are'} already done"


def report_failures(runs: Sequence[RunSpec], result: local.SweepResult) -> int:
    """Print every run that ended in an error, with its log; returns how many."""
    count = 0
    for run in runs:
        outcome = result.outcomes.get(run.folder.path.name)
        if outcome is not None and outcome.kind not in (ExitKind.DONE, ExitKind.INTERRUPTED, ExitKind.CORRUPT):
            log = f" (log: {run.folder.log})" if os.path.exists(run.folder.log) else ""
            print(f"{outcome.kind}: {run.name}: {one_line(outcome.reason)}{log}", file=sys.stderr)
            count += 1
    return count


def report_unwritable(reasons: Mapping[str, str]) -> int:
    """Print every run whose folder cannot be written, by its name; returns how many."""
    for name, reason in reasons.items():
        print(f"{ExitKind.NOT_STARTED}: {name}: {reason}", file=sys.stderr)
    return len(reasons)


def report_corrupt(runs: Sequence[RunSpec]) -> int:
    """Print every corrupt run and how to mend it; returns how many."""
    messages = [message for run in runs if (message := run.folder.corruption())]
    for message in messages:
        print(f"corrupt: {printable(message)}", file=sys.stderr)
    return len(messages)
