"""`attnzoo status`: a table, a live table, or JSON."""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.live import Live
from rich.table import Table

from attnzoo.console import console
from attnzoo.errors import printable
from attnzoo.report.status import RunStatus, counts, read_status
from attnzoo.rundir import duration
from attnzoo.rundir.metrics import PRIMARY_METRICS

WATCH_SECONDS = 2.0


def print_status(sweep: Path, watch: bool, as_json: bool) -> int:
    """Print the status of a sweep, with `watch` until none is active; 1 for a failed, dead or corrupt run."""
    status = read_status(sweep)
    statuses = status.runs
    if status.problem:
        print(f"{printable(status.problem)}; the states are those of the run folders", file=sys.stderr)
    if as_json:
        print(json.dumps([dataclasses.asdict(status) for status in statuses], indent=1))
    elif watch:
        statuses = _watch(sweep, statuses)
    else:
        console().print(status_table(sweep, statuses))
    return int(any(status.state in ("failed", "dead", "corrupt") for status in statuses))


def status_table(sweep: Path, statuses: Sequence[RunStatus]) -> Table:
    """One row per run; the title has the number of runs per state."""
    title = ", ".join(f"{count} {state}" for state, count in counts(statuses).items())
    evaluated = {name for status in statuses for name in status.metrics}
    metrics = [metric for metric in dict.fromkeys(PRIMARY_METRICS.values()) if metric.name in evaluated]
    titles = [metric.title for metric in metrics]
    table = Table("run", "state", "step", *titles, "ETA", "restarts", "job", "note", title=f"{sweep}: {title}")
    for status in statuses:
        step = "" if status.step is None else f"{status.step}/{status.steps}"
        table.add_row(
            status.name,
            status.state,
            step,
            *(format(status.metrics[m.name], m.format_spec) if m.name in status.metrics else "" for m in metrics),
            duration.format_duration(status.eta) if status.eta else "",
            _format_restarts(status),
            status.job or "",
            status.note,
        )
    return table


def _format_restarts(status: RunStatus) -> str:
    if not status.restarts and not status.machine_failures:
        return ""
    failures = status.machine_failures
    return f"{status.restarts}" + (f", {failures} machine failure{'s' if failures > 1 else ''}" if failures else "")


def _watch(sweep: Path, statuses: list[RunStatus]) -> list[RunStatus]:
    with Live(status_table(sweep, statuses), console=console(), auto_refresh=False) as live:
        while any(status.active for status in statuses):
            time.sleep(WATCH_SECONDS)
            statuses = read_status(sweep).runs
            live.update(status_table(sweep, statuses), refresh=True)
    return statuses
