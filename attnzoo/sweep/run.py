"""One command from an experiment file to its comparison."""

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.table import Table

from attnzoo import slurm
from attnzoo.config.load import Experiment
from attnzoo.errors import UserError
from attnzoo.report.console import console
from attnzoo.report.status import RunStatus, sweep_status
from attnzoo.report.summary import summarize
from attnzoo.rundir import process
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.ledger import FILENAME as LEDGER
from attnzoo.schema.keys import format_value
from attnzoo.sweep import local
from attnzoo.sweep.display import Display
from attnzoo.sweep.expand import RunSpec, expand
from attnzoo.sweep.folder import Planned, SweepFolder, explain_new
from attnzoo.sweep.outcome import Kind

DONE, FAILED, INTERRUPTED = 0, 1, 130
ONLY = {
    "failed": lambda one: one.state == "failed",
    "missing": lambda one: one.missing,
    "interrupted": lambda one: one.state in ("interrupted", "cancelled", "dead"),
}


def run(path: str, overrides: Sequence[str], dry_run: bool = False, only: str | None = None) -> int:
    """Train or submit what `path` describes, or list it; returns the exit code.

    `only` chooses among the runs that are neither done nor being worked on: those that failed, those that are missing
    because nobody was ever told to train them, or those that were interrupted.

    0 everything is done, submitted or being worked on by another process, 1 a run failed, 130 interrupted. Raises
    UserError, with nothing written, for whatever in any run's config is not allowed.
    """
    experiment = Experiment(path, [*overrides, *_processes()])
    runs = expand(experiment)
    from attnzoo.sweep.validate import validate  # imports torch: seconds that a misspelt key need not wait

    runs = validate(experiment, runs)
    folder, planned = _place(experiment, runs)
    config = experiment.config()
    if _is_one_of_several_processes():
        return _train_here(folder, planned, str(experiment.path))
    states = _states(folder)
    todo = [p for p in planned if _wanted(p, states.get(p.dir.path.name), only)]
    _explain_new(todo)
    if config.launcher == "slurm":
        return _submit(experiment, folder, planned, todo, dry_run)
    if dry_run:
        _list(planned, states)
        return DONE
    folder.create(planned, str(experiment.path), todo)
    ended = _train(folder, planned, todo, config.jobs)
    summarize(folder.path, [p.dir.path for p in planned])
    failures = _report_failures(planned, ended)
    if ended.interrupted:
        again = shlex.join(["python", "-m", "attnzoo.run", str(path), *overrides])
        print(f"interrupted; to resume, run the same command again: {again}", file=sys.stderr)
        return INTERRUPTED
    return FAILED if failures else DONE


def _is_one_of_several_processes() -> bool:
    """Whether torchrun started us, or srun with others."""
    return "RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def _processes() -> list[str]:
    """The number of processes as an override, where it is no longer ours to choose."""
    if not _is_one_of_several_processes():
        return []
    count = os.environ.get("WORLD_SIZE") if "RANK" in os.environ else os.environ["SLURM_STEP_NUM_TASKS"]
    if count is None:
        raise UserError("RANK is set and WORLD_SIZE is not: start several processes with torchrun, or unset RANK")
    return [f"processes={count}"]


def _explain_new(todo: Sequence[Planned]) -> None:
    if reason := explain_new(todo):
        print(reason)


def _states(folder: SweepFolder) -> dict[str, RunStatus]:
    return {one.name: one for one in sweep_status(folder.path)} if folder.ledger.path.exists() else {}


def _wanted(planned: Planned, state: RunStatus | None, only: str | None) -> bool:
    """Whether a run is to be started now: it is not done, nobody works on it, and it is of the kind asked for."""
    state = state or RunStatus(planned.dir.path.name, "pending", missing=True)
    return state.state != "done" and not state.active and (only is None or ONLY[only](state))


def _submit(
    experiment: Experiment, folder: SweepFolder, planned: Sequence[Planned], todo: Sequence[Planned], dry_run: bool
) -> int:
    from attnzoo.sweep import submit

    found = submit.groups(todo)
    if slurm.available():
        submit.check(found, folder)
    elif not dry_run:
        raise UserError("launcher = 'slurm': SLURM is not installed here (no squeue); log in to a machine that has it")
    if dry_run:
        _list(planned, _states(folder))
        print(submit.describe(found, folder))
        if not slurm.available():
            print("SLURM is not installed here: whether it would take these jobs was not checked")
        return DONE
    if all(p.state == "done" for p in planned):
        print(f"{len(planned)} of {len(planned)} runs are done already")
        summarize(folder.path, [p.dir.path for p in planned])
        return DONE
    folder.create(planned, str(experiment.path), todo)
    for line in submit.submit(found, folder):
        print(line)
    if left_out := len(planned) - len(todo):
        print(f"{left_out} of {len(planned)} runs are done, submitted already or not asked for")
    print(f"to follow them: python -m attnzoo status {shlex.quote(str(folder.path))} --watch")
    return DONE


def _place(experiment: Experiment, runs: list[RunSpec]) -> tuple[SweepFolder, list[Planned]]:
    """A run's own config.yaml goes on in its folder; anything else in output/name below the current folder."""
    own = RunFolder(experiment.path.resolve().parent)
    if len(runs) == 1 and own.config == experiment.path.resolve() and (own.path.parent / LEDGER).exists():
        folder = SweepFolder(own.path.parent)
        return folder, folder.place(runs, at=own.path.name)
    config = runs[0].config
    folder = SweepFolder(Path(config.output).expanduser() / config.name)
    return folder, folder.place(runs)


def _train(folder: SweepFolder, planned: Sequence[Planned], todo: Sequence[Planned], jobs: int) -> local.Ended:
    done = sum(p.state == "done" for p in planned)
    if done:
        print(f"{done} of {len(planned)} runs are done already")
    if left_out := len(planned) - done - len(todo):
        print(f"{left_out} of {len(planned)} runs are being worked on or not asked for")
    with folder.ledger.update() as content:
        content["local"] = process.current()
    with Display(len(todo), folder.attempt) as display:
        return local.train(todo, jobs, display)


def _train_here(folder: SweepFolder, planned: Sequence[Planned], experiment: str) -> int:
    """Under torchrun: this process is one of every run's, the runs follow each other, and a failed one ends them."""
    from attnzoo.engine import distributed
    from attnzoo.worker.train import train_run

    ctx = distributed.init(planned[0].run.config.device)
    refusal = None
    if ctx.is_main:
        _explain_new(planned)
        try:
            folder.create(planned, experiment)
        except UserError as error:
            refusal = str(error)
    refusal, paths = ctx.broadcast_object((refusal, [p.dir.path for p in planned]))
    if refusal is not None:
        raise UserError(refusal)
    code = DONE
    todo = [p for p in planned if p.state != "done"]
    with Display(len(todo), folder.attempt) if ctx.is_main else nullcontext() as display:
        for p, path in zip(planned, paths, strict=True):
            with _shown(p, display):
                code = train_run(path)
            if code != DONE:
                break
    if code != FAILED:  # after an error, other ranks may be waiting in an exchange
        distributed.shutdown()
    if ctx.is_main and code == DONE:
        summarize(folder.path, [p.dir.path for p in planned])
    return code


@contextmanager
def _shown(planned: Planned, display: Display | None) -> Iterator[None]:
    """What the main process shows of a run that it trains itself; of one that is done, nothing."""
    if display is None or planned.state == "done":
        yield
    else:
        display.start(planned)
        with display.following(planned):
            yield


def _report_failures(planned: Sequence[Planned], ended: local.Ended) -> int:
    """Name every run that ended in an error, with its log; returns how many."""
    count = 0
    for p in planned:
        outcome = ended.outcomes.get(p.dir.path.name)
        if outcome is not None and outcome.kind in (Kind.FAILED, Kind.REFUSED, Kind.MACHINE):
            print(f"{outcome.kind}: {p.run.name}: {outcome.reason} (log: {p.dir.log})", file=sys.stderr)
            count += 1
    return count


def _list(planned: Sequence[Planned], states: Mapping[str, RunStatus]) -> None:
    table = Table(title=f"{len(planned)} runs")
    for heading in ("run", "state", "changes", "folder"):
        table.add_column(heading, overflow="fold")
    for p in planned:
        changes = ", ".join(f"{key}={format_value(value)}" for key, value in p.run.changes.items())
        state = states[p.dir.path.name].state if p.dir.path.name in states else p.state
        table.add_row(p.run.name, state, changes or "none", str(p.dir.path))
    console().print(table)
