"""Checks SLURM settings: time, memory, tasks, options of sbatch."""

import math
import re
from typing import Any

from attnzoo.config.experiment import SlurmConfig
from attnzoo.errors import UserError, as_yaml, did_you_mean, plural

MEMORY = re.compile(r"[1-9]\d*[KMGT]")
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+)(?::(?P<minutes>[0-5]?\d))?(?::(?P<seconds>[0-5]?\d))?")
# Options of sbatch that a key of the profile or the sweep itself sets.
OPTION_KEYS = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "nodes": "nodes",
    "ntasks": "nodes and tasks_per_node",
    "ntasks-per-node": "tasks_per_node",
    "gpus-per-node": "gpus_per_node",
    "cpus-per-task": "cpus_per_task",
    "mem": "memory",
    "time": "time",
    "signal": "signal_seconds",
}
RESERVED_OPTIONS = (
    *("array", "clusters", "comment", "error", "job-name", "open-mode", "output", "requeue", "no-requeue", "wrap"),
    # change what sbatch does or answers
    *("parsable", "test-only", "wait", "quiet", "help", "usage", "version", "autocomplete", "external"),
    *("chdir", "export-file", "uid", "gid"),  # jobs need the folder, the environment and the user of the submission
)
EXACT_OPTIONS = ("gpus", "export")  # of sbatch, although others begin with their names


def parse_minutes(time: int | str) -> int:
    """A time limit in whole minutes, rounded up. Raises ValueError for any other form."""
    if isinstance(time, int):
        if time < 1:
            raise ValueError(time)
        return time
    match = TIME.fullmatch(time)
    if not match or (match["days"] is None and match["seconds"] is None):
        raise ValueError(time)
    days, hours, minutes, seconds = (int(match[part] or 0) for part in ("days", "hours", "minutes", "seconds"))
    total = math.ceil((24 * days + hours) * 60 + minutes + seconds / 60)
    if total < 1:
        raise ValueError(time)
    return total


def check_slurm(config: SlurmConfig, processes: int) -> None:
    """Raise UserError, with its key, for settings that sbatch would reject."""
    try:
        limit = parse_minutes(config.time)
    except ValueError:
        raise _expected("time", config.time, "minutes, HH:MM:SS or D-HH:MM:SS") from None
    if 60 * limit <= config.signal_seconds:
        raise UserError(
            f"slurm.signal_seconds = {config.signal_seconds}: expected less than the time limit, "
            f"{plural(limit, 'minute')}",
            key=("slurm.signal_seconds", "slurm.time"),
        )
    if config.memory is not None and not MEMORY.fullmatch(str(config.memory)):
        raise _expected("memory", config.memory, "a number and K, M, G or T, such as 16G")
    for key in ("partition", "account", "qos", "constraint"):
        value = getattr(config, key)
        if value is not None and (not value or re.search(r"\s", value)):
            raise _expected(key, value, "a name without spaces")
    _check_tasks(config, processes)
    _check_options(config)


def tasks_per_node(config: SlurmConfig, processes: int) -> int:
    """Processes on each node."""
    return config.tasks_per_node or processes // config.nodes


def _expected(key: str, value: Any, what: str) -> UserError:
    return UserError(f"slurm.{key} = {as_yaml(value)}: expected {what}", key=f"slurm.{key}")


def _check_tasks(config: SlurmConfig, processes: int) -> None:
    if config.nodes * tasks_per_node(config, processes) != processes:
        per_node = f" x slurm.tasks_per_node = {config.tasks_per_node}" if config.tasks_per_node else ""
        raise UserError(
            f"slurm.nodes = {config.nodes}{per_node}: does not give processes = {processes}",
            key=("slurm.nodes", "slurm.tasks_per_node", "processes"),
        )


def _check_options(config: SlurmConfig) -> None:
    for name, value in config.options.items():
        key = f"slurm.options.{name}"
        if name in OPTION_KEYS:
            raise UserError(f"{key}: set slurm.{OPTION_KEYS[name]} instead", key=key)
        if name in RESERVED_OPTIONS:
            raise UserError(f"{key}: reserved, the sweep sets it", key=key)
        if name == "export" and not re.match(r"ALL(,|$)", str(value)):
            raise _expected(
                "options.export", value, "ALL or ALL,NAME=value: jobs need the environment of the submission"
            )
        known = [*OPTION_KEYS, *RESERVED_OPTIONS]
        if name and name not in EXACT_OPTIONS and (whole := next((k for k in known if k.startswith(name)), "")):
            raise UserError(f"{key}: sbatch reads it as {whole}, which cannot be set here", key=key)
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            hint = did_you_mean(name.replace("_", "-").strip("-"), known)
            raise UserError(f"{key}: expected the long name of an sbatch option, without leading dashes{hint}", key=key)
        if "\n" in str(value):
            raise _expected(f"options.{name}", value, "one line")
