"""What SLURM's own syntax asks of the keys of a profile: times, amounts of memory, numbers of processes."""

import math
import re
from collections.abc import Callable

from attnzoo.config.experiment import SlurmConfig
from attnzoo.errors import UserError, did_you_mean

MEMORY = re.compile(r"[1-9]\d*[KMGT]")
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+)(?::(?P<minutes>[0-5]?\d))?(?::(?P<seconds>[0-5]?\d))?")
# sbatch's options that a key of the profile, or the sweep itself, sets
KEYS = {
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
OWN = ("array", "comment", "error", "job-name", "open-mode", "output", "requeue", "no-requeue", "wrap")


def minutes(time: int | str) -> int:
    """A time limit in whole minutes, rounded up. Raises ValueError for what is not one."""
    if isinstance(time, int):
        if time < 1:
            raise ValueError(time)
        return time
    found = TIME.fullmatch(time)
    if not found or (found["days"] is None and found["seconds"] is None):
        raise ValueError(time)
    days, hours, of_hour, seconds = (int(found[part] or 0) for part in ("days", "hours", "minutes", "seconds"))
    total = math.ceil(((24 * days + hours) * 60 + of_hour) + seconds / 60)
    if total < 1:
        raise ValueError(time)
    return total


def check_slurm(config: SlurmConfig, processes: int, where: Callable[..., str]) -> None:
    """Raise UserError for what the syntax of SLURM refuses; `where` gives the source of keys as a message begins."""
    try:
        limit = minutes(config.time)
    except ValueError:
        expected = "expected minutes, HH:MM:SS or D-HH:MM:SS"
        raise UserError(f"{where('slurm.time')}slurm.time = {config.time!r}: {expected}") from None
    if 60 * limit <= config.signal_seconds:
        raise UserError(
            f"{where('slurm.signal_seconds', 'slurm.time')}slurm.signal_seconds = {config.signal_seconds}: "
            f"expected less than the time limit, {limit} minutes"
        )
    if config.memory is not None and not MEMORY.fullmatch(str(config.memory)):
        raise UserError(
            f"{where('slurm.memory')}slurm.memory = {config.memory!r}: expected a number and K, M, G or T, such as 16G"
        )
    for key in ("partition", "account", "qos", "constraint"):
        value = getattr(config, key)
        if value is not None and (not value or re.search(r"\s", value)):
            raise UserError(f"{where(f'slurm.{key}')}slurm.{key} = {value!r}: expected a name without spaces")
    _check_tasks(config, processes, where)
    _check_options(config, where)


def tasks_per_node(config: SlurmConfig, processes: int) -> int:
    """Processes on each node."""
    return config.tasks_per_node or processes // config.nodes


def _check_tasks(config: SlurmConfig, processes: int, where: Callable[..., str]) -> None:
    tasks = config.nodes * tasks_per_node(config, processes)
    if tasks != processes:
        per_node = f" x slurm.tasks_per_node = {config.tasks_per_node}" if config.tasks_per_node else ""
        place = where("slurm.nodes", "slurm.tasks_per_node", "processes")
        raise UserError(f"{place}slurm.nodes = {config.nodes}{per_node}: does not give processes = {processes}")


def _check_options(config: SlurmConfig, where: Callable[..., str]) -> None:
    for name, value in config.options.items():
        place = f"{where('slurm.options')}slurm.options.{name}"
        if name in KEYS:
            raise UserError(f"{place}: set with slurm.{KEYS[name]}")
        if name in OWN:
            raise UserError(f"{place}: set by the sweep itself")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            hint = did_you_mean(name.replace("_", "-").strip("-"), [*KEYS, *OWN])
            raise UserError(f"{place}: expected the long name of an option of sbatch, without dashes before it{hint}")
        if "\n" in str(value):
            raise UserError(f"{place} = {value!r}: expected one line")
