"""`attnzoo status`: a table, JSON, or a table that keeps up."""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.live import Live
from rich.table import Table

from attnzoo.report.console import console
from attnzoo.report.status import RunStatus, counts, sweep_status
from attnzoo.rundir import duration

WATCH_SECONDS = 2.0


def print_status(sweep: Path, watch: bool, as_json: bool) -> int:
    """Print where the runs of `sweep` are; with `watch` until none is active. Returns 1 if a run failed or is dead."""
    states = sweep_status(sweep)
    if as_json:
        print(json.dumps([dataclasses.asdict(one) for one in states], indent=1))
    elif watch:
        states = _watch(sweep, states)
    else:
        console().print(status_table(sweep, states))
    return int(any(one.state in ("failed", "dead") for one in states))


def status_table(sweep: Path, states: Sequence[RunStatus]) -> Table:
    """The runs, one a row; how many are in which state as its title."""
    title = ", ".join(f"{count} {state}" for state, count in counts(states).items())
    classify = any(one.top1 is not None for one in states)
    metric = "top-1" if classify else "AP"
    table = Table("run", "state", "step", metric, "left", "requeued", "job", "note", title=f"{sweep}: {title}")
    for one in states:
        step = "" if one.step is None else f"{one.step}/{one.steps}"
        value = one.top1 if classify else one.ap
        table.add_row(
            one.name,
            one.state,
            step,
            "" if value is None else f"{value:.3f}",
            duration.format_duration(one.left) if one.left else "",
            _format_restarts(one),
            one.job or "",
            one.note,
        )
    return table


def _format_restarts(one: RunStatus) -> str:
    if not one.requeued and not one.machine_failures:
        return ""
    failures = one.machine_failures
    return f"{one.requeued}" + (f", {failures} machine failure{'s' if failures > 1 else ''}" if failures else "")


def _watch(sweep: Path, states: list[RunStatus]) -> list[RunStatus]:
    with Live(status_table(sweep, states), console=console(), auto_refresh=False) as live:
        while any(one.active for one in states):
            time.sleep(WATCH_SECONDS)
            states = sweep_status(sweep)
            live.update(status_table(sweep, states), refresh=True)
    return states
