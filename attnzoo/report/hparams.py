"""TensorBoard's HParams of a sweep: the columns in the sweep folder, the values of each run in its folder.

Imports no torch.
"""

import dataclasses
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2 as hp
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from attnzoo.config.load import load_saved
from attnzoo.errors import UserError
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.ledger import Ledger
from attnzoo.rundir.metrics import COST_METRICS, TASK_METRICS
from attnzoo.schema.keys import flatten, shorten_keys

SUFFIX = ".hparams"

Value = bool | int | float | str


def write_hparams(
    sweep: Path,
    options: Mapping[str, Mapping[str, object]],
    trial_ids: Mapping[str, str],
    tasks: Collection[str] = tuple(TASK_METRICS),
) -> None:
    """Write the columns, the union of all runs' options, to `sweep` and the values of each run to its folder.

    Both mappings are by run name; the seeds of a variant share a trial id. An option that a run does not have is left
    out or None; values other than numbers, strings and booleans are written as text. Metrics are those of `tasks`, the
    tasks of the runs: TensorBoard hides runs that do not have all of them. Replaces what was written before.
    """
    columns: dict[str, list[Value]] = {}
    for run in options.values():
        for name, value in run.items():
            if value is not None:
                columns.setdefault(name, []).append(value if isinstance(value, (bool, int, float, str)) else str(value))
    types = {name: _column_type(values) for name, values in columns.items()}
    hparams = [hp.HParam(name, hp.Discrete(sorted({types[name](v) for v in columns[name]}))) for name in columns]
    validation = [metric for task, metrics in TASK_METRICS.items() if task in tasks for metric in metrics]
    metrics = [hp.Metric(metric.key) for metric in dict.fromkeys([*validation, *COST_METRICS])]
    _write_event_file(sweep, hp.hparams_config_pb(hparams, metrics))
    for run_name, run in options.items():
        values = {name: types[name](value) for name, value in run.items() if value is not None}
        _write_event_file(sweep / run_name, hp.hparams_pb(values, trial_id=trial_ids[run_name]))


def write_sweep(sweep: Path) -> None:
    """Write the HParams of all started runs but those that are corrupt or whose configs cannot be read.

    The columns are the keys that any sweep in this folder has swept.
    """
    ledger = Ledger(sweep).read()["runs"]
    configs = {name: config for name in ledger if (config := _started_config(RunFolder(sweep / name))) is not None}
    if not configs:
        return
    entries = {name: ledger[name] for name in configs}
    swept = {key for entry in entries.values() for key, _ in flatten(entry.get("overrides", {}))}
    swept = {key for key in swept if not key.startswith("slurm.")}
    variants = [{"variant": e["variant"]} if e.get("variant") is not None else {} for e in entries.values()]
    columns = [{key: config[key] for key in config if key in swept} for config in configs.values()]
    options = shorten_keys([variant | column for variant, column in zip(variants, columns, strict=True)])
    trial_ids = {name: _trial_id(name, entry) for name, entry in entries.items()}
    tasks = {str(config["task"]) for config in configs.values()}
    write_hparams(sweep, dict(zip(entries, options, strict=True)), trial_ids, tasks)


def _trial_id(name: str, entry: dict[str, Any]) -> str:
    """The run's name without its seed: the runs of a variant share it."""
    without_seed = f"-{name}".replace(f"-seed={entry.get('seed')}", "").strip("-")
    return str(entry.get("variant_name") or without_seed or entry.get("digest"))


def _started_config(run: RunFolder) -> dict[str, Any] | None:
    """The keys and values of the config of a run; None if it was not started, or cannot be read."""
    try:
        status, _ = run.read()
        return None if status["state"] == "pending" else dict(flatten(dataclasses.asdict(load_saved(run.config))))
    except UserError:
        return None


def _column_type(values: Iterable[Value]) -> type:
    """The common type of the values of a column: TensorBoard does not accept mixed types."""
    types = {type(value) for value in values}
    if len(types) == 1:
        return types.pop()
    return float if types == {int, float} else str


def _write_event_file(folder: Path, summary: Summary) -> None:
    """Write one summary to a separate event file, replacing the previous one."""
    for old in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
        old.unlink()
    writer = EventFileWriter(str(folder), filename_suffix=SUFFIX)
    writer.add_event(Event(wall_time=time.time(), summary=summary))
    writer.close()
