"""Runs trained by other sources, torch, operators, device or threads are marked in comparisons."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from attnzoo.config.load import Experiment, save
from attnzoo.report.compare import compare
from attnzoo.report.table import to_csv, write_comparison
from attnzoo.rundir import attempts
from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep.expand import expand

USUAL = {"sources": "a1b2c3d4", "torch": "2.11.0", "operators": "avx512", "device": "CPU X", "threads": "1"}
SWEEP = """
name: x
train: {steps: 5}
sweep:
  variants:
    deform: {model.encoder.attention: {name: deform, level: 0}}
    dense: {model.encoder.attention: {name: dense}}
  seeds: [0, 1, 2]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two variants with three finished seeds each, without attempts."""
    return create(tmp_path, SWEEP)


def create(tmp_path: Path, sweep: str) -> Path:
    (tmp_path / "x.yaml").write_text(sweep)
    entries = {}
    for run in expand(Experiment(tmp_path / "x.yaml")):
        target = RunFolder(tmp_path / "runs" / run.name)
        save(run.config, target.config)
        target.metrics.write_text('{"step": 5, "val/AP": 0.5}\n')
        target.write_status(state="done", step=5, steps=5)
        entries[run.name] = {"variant": run.variant, "overrides": run.overrides, "seed": run.seed, "digest": run.digest}
    (tmp_path / "runs" / "sweep.json").write_text(json.dumps({"runs": entries}))
    return tmp_path / "runs"


def record(folder: Path, changes: dict[str, list[tuple[int, dict[str, str]]]]) -> None:
    """One attempt in the usual environment, but those in `changes`: (first step, changed environment) by run."""
    for path in sorted(folder.glob("*-seed=*")):
        for step, changed in changes.get(path.name, [(0, {})]):
            attempts.record_start(RunFolder(path), step, 0, USUAL | changed)
            attempts.record_end(RunFolder(path), "done")


def notes(folder: Path) -> list[str]:
    return [note for note in compare([folder]).notes if note.startswith("[") or "recorded" in note]


def test_equal_environments_have_no_footnote(folder: Path) -> None:
    record(folder, {})
    assert notes(folder) == []
    assert "[1]" not in write_comparison(compare([folder]), folder)[0].read_text()


def test_runs_by_other_sources_are_marked(folder: Path) -> None:
    record(folder, {"deform-seed=2": [(0, {"sources": "d4e5f6a7"})]})
    assert notes(folder) == ["[1] sources differ: 5 runs with a1b2c3d4; 1 run with d4e5f6a7: seed 2 of deform"]
    text = write_comparison(compare([folder]), folder)[0].read_text()
    seeds = [row.split(" | ")[-1] for row in text.partition("compared with")[0].splitlines() if row.startswith("| de")]
    assert seeds == ["3 [1] |", "3 |"]
    assert notes(folder)[0] in text
    assert [row["differs"] for row in csv.DictReader(to_csv(compare([folder])).splitlines())] == ["sources", ""]


@pytest.mark.parametrize("key", sorted(USUAL))
def test_every_part_of_the_environment_counts(folder: Path, key: str) -> None:
    record(folder, {f"dense-seed={seed}": [(0, {key: "other"})] for seed in (0, 1)})
    (note,) = notes(folder)
    assert note.startswith(f"[1] {key} differ")
    assert note.endswith(f"4 runs with {USUAL[key]}; 2 runs with other: seeds 0 1 of dense")
    assert [dict(variant.footnotes) for variant in compare([folder]).variants] == [{}, {key: 1}]


def test_a_run_resumed_by_other_sources_is_marked(folder: Path) -> None:
    """Where the first attempt saved nothing, it does not count."""
    new = {"sources": "d4e5f6a7"}
    record(folder, {"deform-seed=0": [(0, {}), (3, new)], "dense-seed=1": [(0, new), (0, {})]})
    assert notes(folder) == [
        "[1] sources differ: 5 runs with a1b2c3d4; 1 run with a1b2c3d4, then d4e5f6a7: seed 0 of deform"
    ]


def test_runs_without_a_record_are_unknown(folder: Path) -> None:
    (everything,) = notes(folder)
    assert everything == "All runs: sources, torch, operators, device, threads unknown, not recorded."
    assert all(not variant.footnotes for variant in compare([folder]).variants)
    record(folder, {"deform-seed=0": [], "deform-seed=1": []})
    assert notes(folder) == [
        "[1] sources, torch, operators, device, threads unknown, not recorded: 2 runs: seeds 0 1 of deform"
    ]
    assert compare([folder]).variants[0].footnotes == {"unknown": 1}


def test_unfinished_runs_are_not_compared(folder: Path) -> None:
    record(folder, {"dense-seed=0": [(0, {"torch": "3.0"})]})
    RunFolder(folder / "dense-seed=0").write_status(state="interrupted", signal="SIGINT")
    assert notes(folder) == []


def test_two_hundred_runs_take_less_than_three_seconds_and_no_torch(tmp_path: Path) -> None:
    """Of processor time, however busy the machine is."""
    folder = create(tmp_path, f"base: base/detr_scenes.yaml\nname: x\nsweep: {{seeds: {list(range(200))}}}\n")
    for path in folder.glob("seed=*"):
        attempts.record_start(RunFolder(path), 0, 0, USUAL)
        attempts.record_end(RunFolder(path), "done")
    code = (
        "import sys, time; from attnzoo.__main__ import main; code = main(['compare', sys.argv[1]]);"
        "assert 'torch' not in sys.modules; print(time.process_time(), file=sys.stderr); sys.exit(code)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stderr) < 3


def test_hours_count_threads_and_processes_of_a_cpu_and_the_gpus(tmp_path: Path) -> None:
    folder = create(tmp_path, f"{SWEEP}threads: 3\nprocesses: 2\n")
    on_gpu = {"operators": "cuda", "device": "NVIDIA H100"}
    record(folder, {f"dense-seed={seed}": [(0, on_gpu)] for seed in (0, 1, 2)})
    for path in folder.glob("*-seed=*/attempts.jsonl"):
        start, end = map(json.loads, path.read_text().splitlines())
        path.write_text(f"{json.dumps(start)}\n{json.dumps(end | {'time': start['time'] + 1800})}\n")
    deform, dense = csv.DictReader(to_csv(compare([folder])).splitlines())
    assert (float(deform["cpu_hours"]), deform["gpu_hours"]) == (3 * 0.5 * 2 * 3, "")
    assert (dense["cpu_hours"], float(dense["gpu_hours"])) == ("", 3 * 0.5 * 2)
