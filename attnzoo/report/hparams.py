"""A sweep in TensorBoard's HParams: its options at the sweep's root, each run's values in the run. Imports no torch."""

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2 as hp
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from attnzoo.config.load import load
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.ledger import Ledger
from attnzoo.rundir.metrics import METRICS
from attnzoo.schema.labels import flatten, label

SUFFIX = ".hparams"

Value = bool | int | float | str


@dataclass(frozen=True)
class HParamsRun:
    """One run of a sweep: its folder, the name that all seeds of its variant share, and its options.

    An option that the variant does not have is left out (or None); other values than numbers, strings and booleans
    are written as text.
    """

    path: Path
    trial: str
    options: Mapping[str, object]


def write(sweep: Path, runs: Sequence[HParamsRun]) -> None:
    """Declare the union of all runs' options as columns at `sweep`, and every run's values in its own folder.

    Metrics are the scalars that the runs write themselves. Writing again replaces what was written before.
    """
    columns: dict[str, list[Value]] = {}
    for run in runs:
        for name, value in run.options.items():
            if value is not None:
                columns.setdefault(name, []).append(value if isinstance(value, (bool, int, float, str)) else str(value))
    types = {name: _column_type(values) for name, values in columns.items()}
    declared = [hp.HParam(name, hp.Discrete(sorted({types[name](v) for v in columns[name]}))) for name in columns]
    _replace(sweep, hp.hparams_config_pb(declared, [hp.Metric(metric.key) for metric in METRICS]))
    for run in runs:
        given = {name: types[name](value) for name, value in run.options.items() if value is not None}
        _replace(run.path, hp.hparams_pb(given, trial_id=run.trial))


def write_sweep(sweep: Path) -> None:
    """Give TensorBoard the options of all runs that were started.

    Earlier sweeps may have swept other keys: every run then says what it has for each of all of them.
    """
    entries = {name: e for name, e in Ledger(sweep).read()["runs"].items() if RunFolder(sweep / name).config.exists()}
    entries = {name: e for name, e in entries.items() if RunFolder(sweep / name).read_status()["state"] != "pending"}
    if not entries:
        return
    swept = {key for entry in entries.values() for key, _ in flatten(entry["overrides"])}
    swept = {key for key in swept if not key.startswith("slurm.")}
    values = []
    for name in entries:
        config = dict(flatten(dataclasses.asdict(load(RunFolder(sweep / name).config))))
        values.append({key: config[key] for key in config if key in swept})
        if (variant := entries[name].get("variant")) is not None:
            values[-1]["variant"] = variant
    runs = [
        HParamsRun(
            sweep / name, f"-{name}".replace(f"-seed={entry['seed']}", "").strip("-") or entry["digest"], options
        )
        for (name, entry), options in zip(entries.items(), label(values), strict=True)
    ]
    write(sweep, runs)


def _column_type(values: Iterable[Value]) -> type:
    """The one type that a column's values share: TensorBoard takes no mixture."""
    kinds = {type(value) for value in values}
    if len(kinds) == 1:
        return kinds.pop()
    return float if kinds == {int, float} else str


def _replace(folder: Path, summary: Summary) -> None:
    """Put one summary into an event file of its own."""
    for old in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
        old.unlink()
    writer = EventFileWriter(str(folder), filename_suffix=SUFFIX)
    writer.add_event(Event(wall_time=time.time(), summary=summary))
    writer.close()
