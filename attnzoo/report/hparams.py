"""What TensorBoard shows of a sweep as a whole: HParams, a layout of Custom Scalars, the comparison as text.

In the sweep's folder are the columns of HParams, the layout and the text, in the folder of each run its values. Of
several sweeps TensorBoard shows all rows, but the columns of an arbitrary one of them. Imports no torch.
"""

import dataclasses
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.hparams import summary_v2 as hp
from tensorboard.plugins.text import summary_v2 as text
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from attnzoo.config.load import load_saved
from attnzoo.errors import UserError
from attnzoo.paths import real_path
from attnzoo.report.records import RunRecord
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.ledger import Ledger
from attnzoo.rundir.metrics import TASK_METRICS
from attnzoo.schema.keys import flatten, shorten_keys

SUFFIX = ".hparams"
OVERVIEW_SUFFIX = ".overview"  # layout and text
SCORES = "|".join(re.escape(metric.name) for metrics in TASK_METRICS.values() for metric in metrics)
# The charts of Custom Scalars: a title and the keys of metrics that get a chart each. Only the first two are open.
CHARTS = {
    "Score": rf"val/({SCORES})$",
    "Loss": r"(train|val)/loss$",
    "Attention entropy": r"entropy/",
    "Attention inside the box": r"inside_box/",
    "Attention by level": r"level_share/",
    "Other scores": rf"val/(?!({SCORES}|loss)$)",
    "Parts of the loss": r"train/loss_",
    "Optimisation": r"train/(lr|grad_norm)$",
}
OPEN = ("Score", "Loss")

Value = bool | int | float | str


def write_hparams(
    sweep: Path,
    options: Mapping[str, Mapping[str, object]],
    trial_ids: Mapping[str, str],
    tasks: Collection[str] = tuple(TASK_METRICS),
) -> None:
    """Write the columns, the union of all runs' options, to `sweep` and the values of each run to its folder.

    Both mappings are by run name; the seeds of a variant share a trial id. Values other than numbers, strings and
    booleans are written as text. An option that a run does not have, or None, is "n/a", and makes its column text:
    parallel coordinates leave out runs that lack a value. Metrics are those of `tasks`, the tasks of the runs, for the
    same reason. Replaces what was written before.
    """
    names = list(dict.fromkeys(name for run in options.values() for name, value in run.items() if value is not None))
    columns = {name: _column([run.get(name) for run in options.values()]) for name in names}
    hparams = [hp.HParam(name, hp.Discrete(sorted(set(columns[name])))) for name in names]
    validation = [metric for task, metrics in TASK_METRICS.items() if task in tasks for metric in metrics]
    metrics = [hp.Metric(metric.key, display_name=metric.title) for metric in validation]
    _write_event_file(sweep, SUFFIX, hp.hparams_config_pb(hparams, metrics))
    for index, run_name in enumerate(options):
        values = {name: columns[name][index] for name in names}
        _write_event_file(sweep / run_name, SUFFIX, hp.hparams_pb(values, trial_id=trial_ids[run_name]))


def write_sweep(sweep: Path, comparison: str | None = None, records: Iterable[RunRecord] = ()) -> None:
    """Write the HParams of all started runs but those that are corrupt or whose configs cannot be read.

    The columns are the keys that any sweep in this folder has swept. Also writes the layout of Custom Scalars and the
    `comparison`, in Markdown. `records`: runs that have been read already; the others are read.
    """
    ledger = Ledger(sweep).read()["runs"]
    by_folder = {real_path(record.source): record for record in records}
    folder = real_path(sweep)
    runs = {name: _read_started(RunFolder(sweep / name), by_folder.get(folder / name)) for name in ledger}
    started = {name: run for name, run in runs.items() if run is not None}
    if not started:
        return
    configs = {name: config for name, (config, _) in started.items()}
    entries = {name: ledger[name] for name in configs}
    swept = {key for entry in entries.values() for key, _ in flatten(entry.get("overrides", {}))}
    swept = {key for key in swept if not key.startswith("slurm.")}
    variants = [{"variant": e["variant"]} if e.get("variant") is not None else {} for e in entries.values()]
    columns = [{key: config[key] for key in config if key in swept} for config in configs.values()]
    options = shorten_keys([variant | column for variant, column in zip(variants, columns, strict=True)])
    # with the name of the sweep: TensorBoard would average equal variants of several sweeps
    trial_ids = {name: f"{real_path(sweep).name}/{_trial_id(name, entry)}" for name, entry in entries.items()}
    tasks = {str(config["task"]) for config in configs.values()}
    write_hparams(sweep, dict(zip(entries, options, strict=True)), trial_ids, tasks)
    overview = [_layout_summary({key: None for _, keys in started.values() for key in keys})]
    if comparison is not None:
        overview.append(text.text_pb("comparison", comparison))
    _write_event_file(sweep, OVERVIEW_SUFFIX, *overview)


def _layout_summary(keys: Iterable[str]) -> Summary:
    """A layout of Custom Scalars with a chart for each metric, in which every run is a line."""
    layout = layout_pb2.Layout()
    keys = list(keys)
    for title, pattern in CHARTS.items():
        charts = [
            layout_pb2.Chart(title=key, multiline=layout_pb2.MultilineChartContent(tag=[f"^{re.escape(key)}$"]))
            for key in keys
            if re.match(pattern, key)
        ]
        if charts:
            layout.category.append(layout_pb2.Category(title=title, chart=charts, closed=title not in OPEN))
    tensor = TensorProto(dtype=DT_STRING, string_val=[layout.SerializeToString()], tensor_shape=TensorShapeProto())
    metadata = custom_scalars.create_summary_metadata()
    return Summary(value=[Summary.Value(tag=custom_scalars.CONFIG_SUMMARY_TAG, tensor=tensor, metadata=metadata)])


def _trial_id(name: str, entry: dict[str, Any]) -> str:
    """The run's name without its seed: the runs of a variant share it."""
    without_seed = f"-{name}".replace(f"-seed={entry.get('seed')}", "").strip("-")
    return str(entry.get("variant_name") or without_seed or entry.get("digest"))


def _read_started(run: RunFolder, record: RunRecord | None) -> tuple[dict[str, Any], list[str]] | None:
    """The config of a run by key, and the keys of its metrics; None if it was not started, or cannot be read."""
    try:
        status, rows = run.read() if record is None else (record.status, record.metrics)
        if status["state"] == "pending":
            return None
        config = load_saved(run.config) if record is None else record.config
    except UserError:
        return None
    return dict(flatten(dataclasses.asdict(config))), list(dict.fromkeys(key for row in rows for key in row))


def _column(values: Sequence[object]) -> list[Value]:
    """The values of a column as one type, which TensorBoard needs: numbers, booleans or text."""
    types = {type(value) for value in values}
    if types <= {int, float}:
        return [float(value) if float in types else value for value in values]  # type: ignore[arg-type, misc]
    return list(values) if types == {bool} else ["n/a" if value is None else str(value) for value in values]  # type: ignore[arg-type]


def _write_event_file(folder: Path, suffix: str, *summaries: Summary) -> None:
    """Write summaries to an event file of their own, replacing the previous one."""
    for old in folder.glob(f"events.out.tfevents.*{suffix}"):
        old.unlink()
    writer = EventFileWriter(str(folder), filename_suffix=suffix)
    for summary in summaries:
        writer.add_event(Event(wall_time=time.time(), summary=summary))
    writer.close()
