"""Finds run folders."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from os.path import isfile
from pathlib import Path
from typing import Any

from attnzoo.config.load import digest, from_values
from attnzoo.errors import UserError
from attnzoo.files import read_bytes, reason
from attnzoo.paths import real_path, why_no_folder
from attnzoo.rundir.folder import RunFolder, parse_json
from attnzoo.rundir.ledger import Ledger, is_comparison

RESULTS = "results.json"  # see report.records


@dataclass(frozen=True)
class RunEntry:
    """What the ledger of its sweep says of a run.

    `variant`: the name that sweep.variants or sweep.one_at_a_time gives it. `variant_name`: the name of the run without
    its seed. `seed`: None for a run without a ledger.
    """

    variant: str | None
    variant_name: str
    seed: int | None


@dataclass(frozen=True)
class SweepPlan:
    """How the runs of a sweep are compared: see `SweepConfig`. `looks`: as in `sequential.planned_looks`, or None.

    `include`: folders of results. `digests`: of the variants' configs, in the order of the experiment. `costs`: whether
    the costs of the variants are to be measured.
    """

    baseline: str | None = None
    aa: str | None = None
    margin: float | None = None
    looks: tuple[int, ...] | None = None
    include: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    costs: bool = False


def find_runs(folders: Iterable[Path]) -> dict[RunFolder, RunEntry]:
    """The runs in `folders`, each the folder of a run, of a sweep or of several sweeps.

    Runs of a sweep are in the order of its experiment file; those that were started are found without their config
    too. Raises UserError for a folder without runs.
    """
    runs: dict[Path, RunFolder] = {}
    for folder in folders:
        candidates = [folder, *folder.glob("*/"), *folder.glob("*/*/")]
        paths = [path for path in sorted(candidates) if _is_run(RunFolder(path))]
        if not paths:
            reason = "no runs in it" if folder.is_dir() else why_no_folder(folder)
            raise UserError(f"{folder}: {reason}; expected a folder of runs, such as runs/ablate_points")
        runs |= {real_path(path): RunFolder(path) for path in paths}
    sweeps = dict.fromkeys(path.parent for path in runs)
    entries = {sweep / name: entry for sweep in sweeps for name, entry in Ledger(sweep).read()["runs"].items()}
    order = {path: index for index, path in enumerate(entries)}
    ordered = sorted(runs, key=lambda path: order.get(path, len(order)))
    return {runs[path]: _entry(path, entries.get(path, {})) for path in ordered}


def find_plan(folders: Iterable[Path]) -> SweepPlan:
    """The plan of the first sweep in `folders`, each the folder of a run, of a sweep or of several, that has one."""
    for folder in folders:
        if not folder.is_dir():  # which `find_runs` refuses
            continue
        if isfile(folder / RESULTS):  # False for one that may not be read
            try:
                content = parse_json(read_bytes(folder / RESULTS))
            except OSError as error:
                raise UserError(f"{folder / RESULTS}: cannot be read ({reason(error)})") from None
            comparison = content.get("comparison") if isinstance(content, dict) else None
            if comparison and not is_comparison(comparison):
                raise UserError(f"{folder / RESULTS}: corrupt (comparison)")
            if comparison:
                return _current(_plan(comparison), content.get("configs"), folder / RESULTS)
            continue
        for sweep in (folder, real_path(folder).parent, *sorted(folder.glob("*/"))):
            try:
                comparison = Ledger(sweep).read().get("comparison")
            except UserError:  # it may not be read
                if sweep == folder and not _is_run(RunFolder(folder)):
                    raise
                continue
            if comparison:
                return _plan(comparison)
    return SweepPlan()


def _current(plan: SweepPlan, configs: Any, source: Path) -> SweepPlan:
    """With the digests that the configs have now: the schema may have gained keys."""
    saved = {key: configs[key] for key in plan.digests if key in configs} if isinstance(configs, dict) else {}
    new = {key: digest(from_values(values | {"seed": 0}, f"{source}: configs.{key}")) for key, values in saved.items()}
    return replace(plan, digests=tuple(new.get(key, key) for key in plan.digests))


def _plan(values: Mapping[str, Any]) -> SweepPlan:
    fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    return SweepPlan(**fields)


def _entry(path: Path, entry: Mapping[str, Any]) -> RunEntry:
    name = re.sub(r"-?seed=\d+(-[0-9a-f]{8})?$", "", path.name)
    return RunEntry(entry.get("variant"), entry.get("variant_name", name), entry.get("seed"))


def _is_run(run: RunFolder) -> bool:
    try:
        return any(path.exists() for path in (run.config, run.status, run.metrics))
    except PermissionError:  # a run is reported when it is read; others are checkpoints, or the output of jobs
        return run.path.name in Ledger(run.path.parent).read()["runs"]
