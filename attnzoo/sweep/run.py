"""Runs an experiment: from its file to the comparison of its runs."""

import os
import shlex
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from attnzoo import slurm
from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.load import Experiment
from attnzoo.environment import is_distributed_launch
from attnzoo.errors import ExitCode, UserError, plural
from attnzoo.paths import real_path
from attnzoo.report.status import RunStatus, ledger_status, read_status, run_status, sweep_status
from attnzoo.report.summary import summarize
from attnzoo.rundir import process
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.ledger import FILENAME as LEDGER
from attnzoo.sweep import local
from attnzoo.sweep.costs import measure_costs
from attnzoo.sweep.display import ProgressDisplay, display_run
from attnzoo.sweep.expand import RunSpec, expand_sweep
from attnzoo.sweep.folder import SweepFolder, check_location
from attnzoo.sweep.messages import (
    already_done,
    print_other_sources,
    print_restarts,
    print_runs,
    recorded_state,
    report_corrupt,
    report_failures,
    report_unwritable,
)
from attnzoo.sweep.outcome import ExitKind, Outcome
from attnzoo.sweep.rounds import SeedRounds

FOLLOW_SECONDS = 5.0  # between looks at the jobs
STATE_FILTERS = {
    "failed": lambda status: status.state == "failed",
    "missing": lambda status: status.missing,
    "interrupted": lambda status: status.state in ("interrupted", "cancelled", "dead"),
}


def run(
    path: str, overrides: Sequence[str], dry_run: bool = False, only: str | None = None, follow: bool = False
) -> int:
    """Train or submit the runs of the experiment file `path`, or list them; returns an ExitCode.

    `only`, a key of STATE_FILTERS, selects among the runs that are neither done nor active: failed, missing (never
    started or submitted) or interrupted ones. `follow`, with SLURM: wait for the jobs, and submit further rounds of
    seeds until the sweep is decided.

    OK: all runs are done, submitted or active elsewhere. FAILED: a run failed or is corrupt; the others are done,
    submitted or active. Raises UserError, with nothing written, if any run's config is invalid.
    """
    experiment = Experiment(path, [*overrides, *_processes_override()])
    sweep = expand_sweep(experiment)
    from attnzoo.sweep.check_runs import check_runs  # imports torch; a misspelt key is reported before

    for run in {run.folder.path.parent: run for run in sweep.runs}.values():
        try:
            check_location(run.folder.path)
        except UserError as error:
            raise experiment.locate(error) from None
    folder, all_runs = _sweep_folder(experiment, check_runs(experiment, sweep.runs))
    config = experiment.config()
    try:
        rounds = SeedRounds(replace(sweep, runs=all_runs), config)
    except UserError as error:
        raise experiment.locate(error) from None
    runs = rounds.needed_runs()
    if is_distributed_launch() and not dry_run:
        if sweep.plan is not None:
            message = "sweep.seeds: rounds of seeds cannot run under torchrun or srun; list the seeds, or set processes"
            raise UserError(message, key="sweep.seeds")
        return _train_in_process_group(folder, runs, str(experiment.path), config.device, only, rounds.comparison)
    if _rank() > 0:  # of a dry run, which the main process lists
        return ExitCode.OK
    if dry_run:
        return _list(experiment, folder, rounds, only)
    to_start = _to_start(folder, runs, only)
    print_restarts(to_start)
    print_other_sources(runs)
    if config.launcher == "slurm":
        return _submit_rounds(experiment, folder, rounds, to_start, only, follow)
    runs, result = _train_rounds(experiment, folder, rounds, to_start, only)
    ended = False
    succeeded = any(outcome.kind is ExitKind.DONE for outcome in result.outcomes.values())
    if succeeded and not result.interrupted and len(sweep.variants) > 1 and config.sweep.costs:
        ended = measure_costs(folder.path, sweep.baseline)
    summarize(folder.path, [run.folder.path for run in runs])
    failures = report_failures(runs, result) + report_corrupt(runs)
    if result.interrupted:
        command = shlex.join(["python", "-m", "attnzoo.run", str(path), *overrides])
        print(f"interrupted; to resume, run the same command again: {command}", file=sys.stderr)
        return ExitCode.INTERRUPTED
    return ExitCode.INTERRUPTED if ended else ExitCode.FAILED if failures else ExitCode.OK


def _to_start(folder: SweepFolder, runs: Sequence[RunSpec], only: str | None, required: bool = True) -> list[RunSpec]:
    """The runs that are neither done nor active, and pass the filter; by their folders those not in the ledger."""
    statuses = _statuses(folder, required)
    known = [statuses.get(run.folder.path.name) or run_status(run.folder) for run in runs]
    return [run for run, status in zip(runs, known, strict=True) if _should_start(status, only)]


def _list(experiment: Experiment, folder: SweepFolder, rounds: SeedRounds, only: str | None) -> int:
    """Print the runs of the current round, and the jobs that would be submitted."""
    runs = rounds.needed_runs()
    to_start = _to_start(folder, runs, only, required=False)
    print_restarts(to_start)
    print_other_sources(runs)
    print_runs(runs, _statuses(folder, required=False))
    for line in rounds.describe():
        print(line)
    if experiment.config().launcher == "slurm":
        from attnzoo.sweep import submit

        groups = submit.group_by_resources(to_start)
        problem = "" if slurm.available() else "SLURM is not installed here"
        try:
            submit.check(groups, folder, validate=not problem)
        except slurm.SlurmUnavailable as error:
            problem = str(error)
        print(submit.format_dry_run(groups, folder))
        if problem:
            print(f"{problem}: the job scripts were not validated")
    return ExitCode.OK


def _train_rounds(
    experiment: Experiment, folder: SweepFolder, rounds: SeedRounds, to_start: Sequence[RunSpec], only: str | None
) -> tuple[list[RunSpec], local.SweepResult]:
    """Train round after round; returns the runs of all rounds and their outcomes."""
    runs, jobs, outcomes = rounds.needed_runs(), _num_jobs(experiment.config()), dict[str, Outcome]()
    while True:
        unwritable = folder.create(runs, str(experiment.path), to_start, rounds.comparison)
        outcomes |= {name: Outcome(ExitKind.NOT_STARTED, reason) for name, reason in unwritable.items()}
        result = _train(folder, _without(runs, unwritable), _without(to_start, unwritable), jobs, only)
        outcomes |= result.outcomes
        more = rounds.needed_runs()
        if result.interrupted or len(more) == len(runs):
            return runs, local.SweepResult(outcomes, result.interrupted)
        to_start = [run for run in more if run not in runs]
        runs = more
        print(f"undecided: {plural(len(to_start), 'more run')}, up to seed {max(run.seed for run in runs)}")


def _num_jobs(config: ExperimentConfig) -> int:
    """The runs to train at a time."""
    if config.jobs != "auto":
        return config.jobs
    import torch

    if config.device != "cpu" and torch.cuda.is_available():
        return 1
    return max(1, len(os.sched_getaffinity(0)) // (config.threads * config.processes))


def _submit_rounds(
    experiment: Experiment,
    folder: SweepFolder,
    rounds: SeedRounds,
    to_start: Sequence[RunSpec],
    only: str | None,
    follow: bool,
) -> int:
    """Submit the current round; with `follow`, wait for its jobs and go on with the next, until there is none."""
    runs = rounds.needed_runs()
    while True:
        code = _submit(experiment, folder, runs, to_start, rounds.comparison, only)
        if not follow or code != ExitCode.OK:
            return code
        while any(status.active for status in sweep_status(folder.path)):
            time.sleep(FOLLOW_SECONDS)
        more = rounds.needed_runs()
        if len(more) == len(runs):
            summarize(folder.path, [run.folder.path for run in runs])
            states = [recorded_state(run) for run in runs]
            print(f"{states.count('done')} of {plural(len(runs), 'run')} done")
            return ExitCode.OK if set(states) == {"done"} else ExitCode.FAILED
        runs = more
        to_start = _to_start(folder, runs, only)


def _rank() -> int:
    """The rank that torchrun or srun gave this process."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) if is_distributed_launch() else 0


def _processes_override() -> list[str]:
    """The override of `processes` with the world size of torchrun or srun."""
    if not is_distributed_launch():
        return []
    world_size = os.environ.get("WORLD_SIZE") if "RANK" in os.environ else os.environ["SLURM_STEP_NUM_TASKS"]
    if world_size is None:
        raise UserError("RANK is set and WORLD_SIZE is not: start several processes with torchrun, or unset RANK")
    return [f"processes={world_size}"]


def _statuses(folder: SweepFolder, required: bool = True) -> dict[str, RunStatus]:
    """The runs in the ledger by name. Raises slurm.SlurmUnavailable if SLURM's answer is `required`."""
    if not folder.ledger.exists():
        return {}
    runs = sweep_status(folder.path) if required else read_status(folder.path).runs
    return {status.name: status for status in runs}


def _still_to_start(
    folder: SweepFolder, content: dict[str, Any], to_start: Sequence[RunSpec], only: str | None
) -> list[RunSpec]:
    """Those of `to_start` that no other process has started or submitted meanwhile, by the locked ledger."""
    statuses = {status.name: status for status in ledger_status(folder.ledger, content)}
    return [run for run in to_start if _should_start(statuses[run.folder.path.name], only)]


def _without(runs: Sequence[RunSpec], names: Collection[str]) -> list[RunSpec]:
    return [run for run in runs if run.folder.path.name not in names]


def _should_start(status: RunStatus, only: str | None) -> bool:
    startable = status.state not in ("done", "corrupt") and not status.active
    return startable and (only is None or STATE_FILTERS[only](status))


def _submit(
    experiment: Experiment,
    folder: SweepFolder,
    runs: Sequence[RunSpec],
    to_start: Sequence[RunSpec],
    comparison: Mapping[str, Any] | None,
    only: str | None,
) -> int:
    from attnzoo.sweep import submit

    groups = submit.group_by_resources(to_start)
    if not slurm.available():
        message = "launcher = 'slurm': SLURM is not installed here (no squeue); run this on a login node"
        raise experiment.locate(UserError(message, key="launcher"))
    submit.check(groups, folder)
    states = [recorded_state(run) for run in runs]
    unwritable = folder.create(runs, str(experiment.path), to_start, comparison)
    to_start = _without(to_start, unwritable)
    if set(states) <= {"done", "corrupt"}:
        print(already_done(states.count("done"), len(runs)))
        summarize(folder.path, [run.folder.path for run in runs])
        return ExitCode.FAILED if report_corrupt(runs) else ExitCode.OK
    code = submit.snapshot(to_start, folder)
    with folder.ledger.update() as content:  # what is missing is decided and written under one lock
        to_start = _still_to_start(folder, content, to_start, only)
        submissions = submit.reserve(submit.group_by_resources(to_start), folder, content, code)
    for line in submit.submit(submissions, folder):
        print(line)
    if skipped := len(runs) - len(unwritable) - len(to_start):
        print(f"{skipped} of {plural(len(runs), 'run')} skipped (done, already submitted, corrupt or not selected)")
    print(f"to monitor: python -m attnzoo status {shlex.quote(str(folder.path))} --watch")
    return ExitCode.FAILED if report_unwritable(unwritable) + report_corrupt(runs) else ExitCode.OK


def _sweep_folder(experiment: Experiment, runs: list[RunSpec]) -> tuple[SweepFolder, list[RunSpec]]:
    """The sweep's folder, and the runs with theirs: a run's config.yaml resumes in its own folder."""
    own = RunFolder(real_path(experiment.path).parent)
    if len(runs) == 1 and own.config == real_path(experiment.path) and (own.path.parent / LEDGER).exists():
        folder = SweepFolder(own.path.parent)
        return folder, folder.assign(runs, name=own.path.name)
    folder = SweepFolder(runs[0].folder.path.parent)
    return folder, folder.assign(runs)


def _train(
    folder: SweepFolder, runs: Sequence[RunSpec], to_start: Sequence[RunSpec], jobs: int, only: str | None
) -> local.SweepResult:
    with folder.ledger.update() as content:  # what is missing is decided and written under one lock
        to_start = _still_to_start(folder, content, to_start, only)
        if to_start:
            content["local"] = process.current()
    done = sum(recorded_state(run) == "done" for run in runs)
    if done:
        print(already_done(done, len(runs)))
    if skipped := len(runs) - done - len(to_start):
        print(f"{skipped} of {plural(len(runs), 'run')} skipped (active elsewhere, corrupt or not selected)")
    with ProgressDisplay(len(to_start), folder.record_start) as display:
        return local.train(to_start, jobs, display)


def _train_in_process_group(
    folder: SweepFolder,
    runs: Sequence[RunSpec],
    experiment: str,
    device: str,
    only: str | None,
    comparison: Mapping[str, Any] | None,
) -> int:
    """Under torchrun or srun: train the runs one after another in this process group; stop at the first failure.

    Corrupt runs are left out and reported at the end, as by the local launcher.
    """
    from attnzoo.engine import distributed
    from attnzoo.worker.train import train_run

    ctx = distributed.init(device)
    to_start, num_left_out, error = list[RunSpec](), 0, None
    if ctx.is_main:
        try:
            to_start = _to_start_here(folder, runs, only)
            print_restarts(to_start)
            print_other_sources(runs)
            unwritable = folder.create(runs, experiment, comparison=comparison)
            to_start = _without(to_start, unwritable)
            num_left_out = report_unwritable(unwritable) + sum(recorded_state(run) == "corrupt" for run in runs)
        except UserError as reason:
            error = str(reason)
    error, to_start, num_left_out = ctx.broadcast_object((error, to_start, num_left_out))
    if error is not None:
        raise UserError(error)
    code = int(ExitCode.OK)
    with ProgressDisplay(len(to_start), folder.record_start) if ctx.is_main else nullcontext() as display:
        for run in to_start:
            with display_run(run, display):
                code = train_run(run.folder.path)
            if code != ExitCode.OK:
                break
    if code != ExitCode.FAILED:  # after an error, other ranks may be waiting in a collective
        distributed.shutdown()
    if ctx.is_main and code == ExitCode.OK:
        summarize(folder.path, [run.folder.path for run in runs])
    if ctx.is_main:
        report_corrupt(runs)
    return int(ExitCode.FAILED) if code == ExitCode.OK and num_left_out else code


def _to_start_here(folder: SweepFolder, runs: Sequence[RunSpec], only: str | None) -> list[RunSpec]:
    """The runs that are not done; with `only`, those that also pass the filter."""
    if only is None:  # a run may seem active on the node that a requeued job has left: its lock decides
        return [run for run in runs if recorded_state(run) not in ("done", "corrupt")]
    return _to_start(folder, runs, only)
