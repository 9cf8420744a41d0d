"""One command from an experiment file to its comparison."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from attnzoo.config.labels import text
from attnzoo.config.load import Experiment
from attnzoo.errors import UserError
from attnzoo.report.compare import compare, write
from attnzoo.report.table import show
from attnzoo.rundir import RunDir
from attnzoo.sweep import local
from attnzoo.sweep.display import Display
from attnzoo.sweep.expand import Run, expand
from attnzoo.sweep.folder import LEDGER, Planned, SweepFolder

DONE, FAILED, INTERRUPTED = 0, 1, 130


def run(path: str, overrides: Sequence[str], dry_run: bool = False) -> int:
    """Train what `path` describes, or list it; returns the exit code.

    0 everything is done, 1 a run failed, 130 interrupted. Raises UserError, with nothing written, for whatever in
    any run's config is not allowed.
    """
    experiment = Experiment(path, overrides)
    runs = expand(experiment)
    from attnzoo.sweep.validate import validate  # imports torch: seconds that a misspelt key need not wait

    validate(runs)
    folder, planned = _place(experiment, runs)
    if dry_run:
        _list(planned)
        return DONE
    if "RANK" in os.environ:
        return _train_here(folder, planned, str(experiment.path))
    folder.create(planned, str(experiment.path))
    outcome = _train(folder, planned, experiment.config().jobs)
    _conclude(folder, planned)
    failures = _report_failures(planned, outcome)
    if outcome.interrupted:
        again = shlex.join(["python", "-m", "attnzoo.run", str(path), *overrides])
        print(f"interrupted; to resume, run the same command again: {again}", file=sys.stderr)
        return INTERRUPTED
    return FAILED if failures else DONE


def _place(experiment: Experiment, runs: list[Run]) -> tuple[SweepFolder, list[Planned]]:
    """A run's own config.yaml goes on in its folder; anything else in output/name below the current folder."""
    own = RunDir(experiment.path.resolve().parent)
    if len(runs) == 1 and own.config == experiment.path.resolve() and (own.path.parent / LEDGER).exists():
        folder = SweepFolder(own.path.parent)
        return folder, folder.place(runs, at=own.path.name)
    config = runs[0].config
    folder = SweepFolder(Path(config.output).expanduser() / config.name)
    return folder, folder.place(runs)


def _train(folder: SweepFolder, planned: Sequence[Planned], jobs: int) -> local.Outcome:
    todo = [p for p in planned if p.state != "done"]
    if skipped := len(planned) - len(todo):
        print(f"{skipped} of {len(planned)} runs are done already")
    with Display(len(todo), folder.attempt) as display:
        return local.train(todo, jobs, display)


def _train_here(folder: SweepFolder, planned: Sequence[Planned], experiment: str) -> int:
    """Under torchrun: this process is one of every run's, the runs follow each other, and a failed one ends them."""
    from attnzoo.engine import distributed, worker

    ranks = distributed.join(planned[0].run.config.device)
    refusal = None
    if ranks.is_main:
        try:
            folder.create(planned, experiment)
        except UserError as error:
            refusal = str(error)
    refusal, paths = ranks.share((refusal, [p.dir.path for p in planned]))
    if refusal is not None:
        raise UserError(refusal)
    code = DONE
    for p, path in zip(planned, paths, strict=True):
        if ranks.is_main and p.state != "done":
            folder.attempt(p)
        if (code := worker.main(path)) != DONE:
            break
    if code != FAILED:  # after an error, other ranks may be waiting in an exchange
        distributed.leave()
    if ranks.is_main and code == DONE:
        _conclude(folder, planned)
    return code


def _conclude(folder: SweepFolder, planned: Sequence[Planned]) -> None:
    """The comparison in the terminal, in files and in TensorBoard."""
    from attnzoo.engine import hparams

    comparison = compare([folder.path])
    show(comparison)
    for path in write(comparison, folder.path):
        print(path)
    runs = [hparams.HParamsRun(p.dir.path, p.run.digest, p.run.options) for p in planned if p.state != "pending"]
    hparams.write(folder.path, runs)


def _report_failures(planned: Sequence[Planned], outcome: local.Outcome) -> int:
    """Name every run that ended in an error, with its log; returns how many."""
    failed = [p for p in planned if outcome.codes.get(p.dir.path.name, DONE) not in (DONE, INTERRUPTED)]
    for p in failed:
        code = outcome.codes[p.dir.path.name]
        status = p.dir.read_status()
        reason = status.get("error") if status["state"] == "failed" else None
        print(
            f"failed: {p.run.name} (exit code {code}): {reason or last_line(p.dir.log)} (log: {p.dir.log})",
            file=sys.stderr,
        )
    return len(failed)


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"


def _list(planned: Sequence[Planned]) -> None:
    table = Table(title=f"{len(planned)} runs")
    for heading in ("run", "state", "changes", "folder"):
        table.add_column(heading, overflow="fold")
    for p in planned:
        changes = ", ".join(f"{key}={text(value)}" for key, value in p.run.changes.items())
        table.add_row(p.run.name, p.state, changes or "none", str(p.dir.path))
    # A file or pipe has no width to keep to.
    Console(highlight=False, width=None if sys.stdout.isatty() else 1000).print(table)
