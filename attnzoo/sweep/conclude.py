"""What the end of a sweep shows: the comparison of its runs, and TensorBoard's table of hyperparameters."""

import dataclasses
from collections.abc import Sequence

from attnzoo.config.labels import flatten, label
from attnzoo.config.load import load
from attnzoo.report.compare import compare, write
from attnzoo.report.table import show
from attnzoo.rundir import RunDir
from attnzoo.sweep.folder import Planned, SweepFolder


def conclude(folder: SweepFolder, planned: Sequence[Planned]) -> None:
    """Compare these runs, in the terminal and in files, and give TensorBoard the options of all of the folder's."""
    comparison = compare([p.dir.path for p in planned])
    show(comparison)
    for path in write(comparison, folder.path):
        print(path)
    write_hparams(folder)


def write_hparams(folder: SweepFolder) -> None:
    """Give TensorBoard the options of all runs that were started.

    Earlier sweeps may have swept other keys: every run then says what it has for each of all of them.
    """
    from attnzoo.engine import hparams

    entries = {name: e for name, e in folder.entries().items() if RunDir(folder.path / name).config.exists()}
    entries = {name: e for name, e in entries.items() if RunDir(folder.path / name).read_status()["state"] != "pending"}
    if not entries:
        return
    swept = {key for entry in entries.values() for key, _ in flatten(entry["overrides"])}
    swept = {key for key in swept if not key.startswith("slurm.")}
    values = []
    for name in entries:
        config = dict(flatten(dataclasses.asdict(load(RunDir(folder.path / name).config))))
        values.append({key: config[key] for key in config if key in swept})
    runs = [
        hparams.HParamsRun(folder.path / name, entry["digest"], options)
        for (name, entry), options in zip(entries.items(), label(values), strict=True)
    ]
    hparams.write(folder.path, runs)
