"""The runs of a comparison: read from their folders, or from results.json, in which raw results are kept.

results.json holds what a comparison needs of each run: config, status, environments, hours, and the rows of
metrics.jsonl with validation metrics, costs, or the entropy and shares of attention.

    {"format": 1, "comparison": a SweepPlan or null, "configs": {DIGEST: config without its seed},
     "runs": [{"variant", "variant_name", "seed", "config": DIGEST, "status", "environments", "hours", "metrics"}]}
"""

import dataclasses
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import isfile
from pathlib import Path
from typing import Any

from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.load import digest, find_digest, from_values, load_saved
from attnzoo.errors import UserError
from attnzoo.files import read_json, reason
from attnzoo.report.runs import RESULTS, RunEntry, find_runs
from attnzoo.rundir import attempts
from attnzoo.rundir.folder import RunFolder, atomic_write, has_types, is_row, is_status
from attnzoo.rundir.metrics import ATTENTION, COST_METRICS, MEMORY_METRICS, final_values, is_validation

FORMAT = 1
LEFT_OUT = "Left out: "  # before the reason why a run is missing from a comparison
RUN = {
    "variant": str | None,
    "variant_name": str,
    "seed": int,
    "config": str,
    "status": dict,
    "environments": list,
    "hours": int | float | None,
    "metrics": list,
}
KEPT = frozenset(metric.key for metric in (*COST_METRICS, *MEMORY_METRICS))


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run. `source`: its folder or results.json. `hours`: by the clock, of all its attempts; None if not recorded."""

    source: Path
    entry: RunEntry
    config: ExperimentConfig
    digest: str
    status: dict[str, Any]
    metrics: list[dict[str, float]]
    environments: Sequence[Any]
    hours: float | None

    @cached_property
    def final(self) -> dict[str, float]:
        """The last value of each metric; {} if the run is not finished."""
        return final_values(self.status, self.metrics)

    @property
    def cpu_hours(self) -> float | None:
        """Hours of all threads of all processes; None if not recorded, and on a GPU."""
        return None if self.hours is None or self._is_on_gpu else self._process_hours * self.config.threads

    @property
    def gpu_hours(self) -> float | None:
        """Hours of all GPUs; None if not recorded, and on the CPU."""
        return self._process_hours if self.hours is not None and self._is_on_gpu else None

    @property
    def _process_hours(self) -> float:
        return (self.hours or 0.0) * self.config.processes

    @property
    def _is_on_gpu(self) -> bool:
        known = [environment for environment in self.environments if environment]
        return any(e.get("operators") == "cuda" or "NVIDIA" in e.get("device", "") for e in known)


def read_records(folders: Iterable[Path]) -> tuple[list[RunRecord], list[str]]:
    """The runs in `folders`, and why others were left out. Raises UserError for a folder without runs or results."""
    records, left_out, run_folders = [], [], []
    for folder in folders:
        if isfile(folder / RESULTS):  # False for one that may not be read
            records += _read_results(folder / RESULTS)
        else:
            run_folders.append(folder)
    for run, entry in find_runs(run_folders).items():
        try:
            records.append(_read_run(run, entry))
        except UserError as error:
            left_out.append(f"{LEFT_OUT}{error}")
    return records, left_out


def with_digests(records: Sequence[RunRecord], digests: Collection[str]) -> list[RunRecord]:
    """Those of `records` whose config has one of `digests`, with it; options may have been added since."""
    found: dict[str, str | None] = {}
    for record in records:
        if record.digest not in found:
            found[record.digest] = find_digest(record.config, digests)
    return [dataclasses.replace(record, digest=new) for record in records if (new := found[record.digest]) is not None]


def save_results(records: Sequence[RunRecord], comparison: dict[str, Any] | None, path: Path) -> None:
    """Write the finished ones of `records` into the file `path`."""
    configs: dict[str, dict[str, Any]] = {}
    runs = []
    for record in records:
        if not record.final:
            continue
        values = dataclasses.asdict(record.config)
        del values["seed"]
        configs.setdefault(record.digest, values)
        rows = [
            {key: value for key, value in row.items() if key in KEPT or not key.startswith(("train/", "speed/"))}
            for row in record.metrics
            if is_validation(row) or KEPT & row.keys() or any(key.startswith(ATTENTION) for key in row)
        ]
        runs.append(
            {
                "variant": record.entry.variant,
                "variant_name": record.entry.variant_name,
                "seed": record.config.seed,
                "config": record.digest,
                "status": {key: record.status[key] for key in ("state", "step", "steps") if key in record.status},
                "environments": record.environments,
                "hours": record.hours,
                "metrics": rows,
            }
        )
    content = {"format": FORMAT, "comparison": comparison, "configs": configs, "runs": runs}
    with atomic_write(path) as file:
        json.dump(content, file, indent=None, separators=(",", ":"))
        file.write("\n")


def _read_run(run: RunFolder, entry: RunEntry) -> RunRecord:
    status, metrics = run.read()
    config = load_saved(run.config)
    environments, hours = attempts.environments(run), attempts.hours(run)
    return RunRecord(run.path, entry, config, digest(config), status, metrics, environments, hours)


def _read_results(path: Path) -> list[RunRecord]:
    try:
        content = read_json(path)
        if content["format"] != FORMAT:
            raise UserError(f"{path}: format {content['format']}, expected {FORMAT}")
        configs = {
            key: from_values(values | {"seed": 0}, f"{path}: configs.{key}")
            for key, values in content["configs"].items()
        }
        digests = {key: digest(config) for key, config in configs.items()}
        if not content["runs"]:
            raise UserError(f"{path}: no runs in it")
        for run in content["runs"]:
            if not _is_valid(run):
                raise ValueError(f"fields, status or metrics of {run['variant_name']}, seed {run['seed']}")
        return [
            RunRecord(
                path,
                RunEntry(run["variant"], run["variant_name"], run["seed"]),
                dataclasses.replace(configs[run["config"]], seed=run["seed"]),
                digests[run["config"]],
                run["status"],
                run["metrics"],
                run["environments"],
                run["hours"],
            )
            for run in content["runs"]
        ]
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: corrupt ({type(error).__name__}: {reason(error)})") from None


def _is_valid(run: Any) -> bool:
    """Whether a run of results.json has its fields, of their types."""
    if not has_types(run, RUN, list(RUN)) or not is_status(run["status"]) or not all(map(is_row, run["metrics"])):
        return False
    return all(environment is None or _is_environment(environment) for environment in run["environments"])


def _is_environment(values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(value, str) for value in values.values())
