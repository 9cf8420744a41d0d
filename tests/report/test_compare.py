import csv
import io
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from support.corrupt import corrupt

from attnzoo.__main__ import main
from attnzoo.config.load import Experiment, save
from attnzoo.errors import UserError
from attnzoo.report.compare import compare
from attnzoo.report.statistics import mean_ci95
from attnzoo.report.table import PAIRED_COLUMNS, print_comparison, rich_table, to_csv, write_comparison
from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep.expand import expand

SWEEP = """
name: x
train: {steps: 5}
sweep:
  zip: {model.encoder.attention.points: [10, 2], model.decoder.attention.points: [10, 2]}
  seeds: [0, 1, 2]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two variants with three seeds each; AP is points / 100 + seed / 10."""
    (tmp_path / "x.yaml").write_text(SWEEP)
    for run in expand(Experiment(tmp_path / "x.yaml")):
        target = RunFolder(tmp_path / "runs" / run.name)
        save(run.config, target.config)
        ap = run.labels["points"] / 100 + run.seed / 10
        rows = [
            {"step": 0, "cost/params": 1000, "cost/gflops": 0.5, "cost/ms": 2.0 + run.seed},
            {"step": 3, "val/AP": 0.9, "val/AP50": 0.9},
            {"step": 5, "train/loss": 1.0},
            {"step": 5, "val/AP": ap, "val/AP50": 2 * ap},
        ]
        target.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
        target.write_status(state="done", step=5, steps=5)
    return tmp_path / "runs"


def test_interval_uses_students_t_distribution() -> None:
    estimate = mean_ci95([1.0, 2.0, 3.0])
    assert estimate is not None
    assert estimate.ci95 is not None
    assert (estimate.mean, estimate.n) == (2.0, 3)
    assert estimate.ci95 == pytest.approx(4.302653 * 1.0 / math.sqrt(3), rel=1e-6)  # t(0.975, 2), deviation 1
    single = mean_ci95([0.4])
    assert single is not None
    assert (single.mean, single.ci95) == (0.4, None)
    assert mean_ci95([]) is None


def test_mean_of_values_that_are_not_finite_has_no_interval() -> None:
    estimate = mean_ci95([0.1, math.nan, 0.3])
    assert estimate is not None
    assert math.isnan(estimate.mean)
    assert estimate.ci95 is None


def test_variants_are_averaged_over_their_seeds(folder: Path) -> None:
    comparison = compare([folder])
    assert comparison.columns == ["points"]
    assert [variant.options["points"] for variant in comparison.variants] == [2, 10]
    ap = comparison.variants[0].estimates["val/AP"]
    assert ap is not None
    assert ap.mean == pytest.approx(0.12)
    assert ap.ci95 == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert any("Equal budgets: 5" in note for note in comparison.notes)
    assert any(
        "over seeds. Overlapping intervals do not show that variants are equal" in note for note in comparison.notes
    )


def test_files_hold_the_same_numbers(folder: Path) -> None:
    paths = write_comparison(compare([folder]), folder)
    assert [path.name for path in paths] == ["comparison.md", "comparison.csv"]
    assert "| 2 | 0.120 ± 0.248 | 0.240 ± 0.497 | 1,000 | 0.5 | 3 |" in paths[0].read_text()
    rows = list(csv.DictReader(io.StringIO(paths[1].read_text())))
    assert float(rows[0]["AP"]) == pytest.approx(0.12)
    assert rows[1]["seeds"] == "0 1 2"


def test_printed_table_is_never_truncated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = compare([folder])
    long = replace(comparison.variants[0], options={"points": "a_long_word" * 20})
    comparison = replace(comparison, variants=[long, *comparison.variants[1:]])
    print_comparison(comparison)
    row = next(line for line in capsys.readouterr().out.splitlines() if "a_long_word" in line)
    assert "a_long_word" * 20 in row
    assert [cell.strip() for cell in row.split("│")[2:-1]] == [
        "0.120 ± 0.248", "0.240 ± 0.497", "1,000", "0.5", "3",
    ]  # fmt: skip
    for width in (100, 40):
        out = io.StringIO()
        Console(width=width, file=out).print(rich_table(comparison))
        text = out.getvalue()
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
        assert "0.120 ± 0.248" in text or width == 40


def test_one_seed_has_no_interval(folder: Path) -> None:
    for seed in (1, 2):
        for points in (2, 10):
            RunFolder(folder / f"points={points}-seed={seed}").config.unlink()
    text = write_comparison(compare([folder]), folder)[0].read_text()
    assert "0.020 ± n/a" in text
    assert "intervals n/a" in text


def test_unfinished_runs_are_listed_and_excluded_from_means(folder: Path) -> None:
    RunFolder(folder / "points=2-seed=2").write_status(state="failed", error="it was me")
    RunFolder(folder / "points=10-seed=0").status.unlink()
    comparison = compare([folder])
    assert comparison.variants[0].unfinished == ("seed 2 failed",)
    assert comparison.variants[1].unfinished == ("seed 0 pending",)
    ap = comparison.variants[0].estimates["val/AP"]
    assert ap is not None
    assert (ap.mean, ap.n) == (pytest.approx(0.07), 2)
    assert any("2 of 6 runs are not finished" in note for note in comparison.notes)


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_run_without_final_evaluation_is_excluded(folder: Path, rows: int) -> None:
    """The second row is an evaluation too, of an earlier step."""
    metrics = RunFolder(folder / "points=2-seed=2").metrics
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:rows]))
    comparison = compare([folder])
    assert comparison.variants[0].seeds == (0, 1)
    assert any(note.startswith(f"Left out: {metrics}: corrupt, no validation metrics") for note in comparison.notes)


def test_unequal_budgets_give_a_warning(folder: Path) -> None:
    run = RunFolder(folder / "points=2-seed=0")
    with run.metrics.open("a") as file:
        file.write('{"step": 9, "val/AP": 0.5}\n')
    run.write_status(state="done", AP=0.5)
    assert any(note.startswith("Warning: budgets differ (5, 9") for note in compare([folder]).notes)


def test_duplicate_run_is_rejected(folder: Path) -> None:
    copied = folder.parent / "again"
    shutil.copytree(folder, copied)
    with pytest.raises(UserError, match="duplicate run, the same config and seed as"):
        compare([folder, copied])


@pytest.mark.parametrize("content", [b"{", b"", b"{}", b"[]", b"3", b'{"state": "dnoe"}', b"\xff"])
def test_error_names_the_corrupt_status_file(folder: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(folder / "points=2-seed=0")
    run.status.write_bytes(content)
    comparison = compare([folder])
    assert any("points=2-seed=0/status.json: corrupt" in note for note in comparison.notes)
    assert [variant.seeds for variant in comparison.variants] == [(1, 2), (0, 1, 2)]
    (folder / "sweep.json").write_text(json.dumps({"runs": {"points=2-seed=0": {}}}))
    assert main(["status", str(folder), "--json"]) == 1
    (status,) = json.loads(capsys.readouterr().out)
    assert status["state"] == "corrupt"
    assert "status.json: corrupt; delete it" in status["note"]


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"step": "5"}', '{"step": 5, "val/AP": "high"}', "\udcff"])
def test_error_names_the_invalid_metrics_row(folder: Path, line: str) -> None:
    run = RunFolder(folder / "points=2-seed=0")
    with run.metrics.open("a", errors="surrogateescape") as file:
        file.write(f"{line}\n")
    comparison = compare([folder])
    assert any("points=2-seed=0/metrics.jsonl:5: corrupt row" in note for note in comparison.notes)
    assert [variant.seeds for variant in comparison.variants] == [(1, 2), (0, 1, 2)]


@pytest.mark.parametrize("state", ["done", "interrupted"])
@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in ("status.json", "config.yaml") for how in ("emptied", "cut")]
    + [("config.yaml", "cut at a line end"), ("config.yaml", "deleted")],
)
def test_corrupt_file_does_not_affect_other_runs(
    folder: Path, name: str, how: str, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(folder / "points=2-seed=0")
    run.write_status(state=state, signal="SIGINT")
    names = [path.name for path in sorted(folder.iterdir())]
    entry = {"overrides": {}, "seed": 0, "digest": "", "attempts": 1}
    (folder / "sweep.json").write_text(json.dumps({"runs": dict.fromkeys(names, entry)}))
    corrupt(run.path / name, how)
    assert main(["status", str(folder), "--json"]) == 1
    found = {status["name"]: status for status in json.loads(capsys.readouterr().out)}
    assert [found[name]["state"] for name in names].count("done") == 5
    assert name in found[run.path.name]["note"]
    assert main(["compare", str(folder)]) == 1
    assert f"Left out: {run.path}/{name}" in capsys.readouterr().out


def test_row_truncated_by_a_kill_is_omitted(folder: Path) -> None:
    before = compare([folder])
    with RunFolder(folder / "points=2-seed=0").metrics.open("a") as file:
        file.write('{"step": 9, "val/A')
    assert compare([folder]) == before


def test_folders_without_runs_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        compare([tmp_path / "nothing"])
    with pytest.raises(UserError, match="no runs in it"):
        compare([tmp_path])


def test_comparing_imports_no_torch(folder: Path) -> None:
    code = (
        f"import sys; from attnzoo.__main__ import main; code = main(['compare', {str(folder)!r}]);"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
    assert (folder / "comparison.md").exists()


def test_scipy_is_imported_only_for_intervals() -> None:
    code = "import sys, attnzoo.report.summary; sys.exit('scipy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_csv_has_the_verdicts(folder: Path) -> None:
    comparison = compare([folder])
    rows = {int(row["points"]): row for row in csv.DictReader(to_csv(comparison).splitlines())}
    assert comparison.paired is not None
    row = comparison.paired.rows[0].final
    base, other = (rows[10], rows[2]) if comparison.paired.baseline == "points=10" else (rows[2], rows[10])
    assert {base[name] for name in PAIRED_COLUMNS} == {""}
    assert (other["verdict"], int(other["pairs"])) == (row.verdict, 3)
    assert float(other["difference"]) == row.mean
