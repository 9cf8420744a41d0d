"""Raw results of a sweep in one file, which count as finished runs of later sweeps."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweep.test_seeds import BASE, BETTER, ROUNDS, UNCLEAR, experiment, finish, needed, rounds

from attnzoo.__main__ import main
from attnzoo.errors import UserError
from attnzoo.report.compare import compare
from attnzoo.report.records import read_records
from attnzoo.rundir import attempts
from attnzoo.sweep.expand import expand_sweep
from attnzoo.sweep.rounds import SeedRounds

ATTENTION = {"step": 1, "entropy/decoder.0": 0.9, "inside_box/decoder.0": 0.2, "level_share/decoder.0/large/level0": 1}
SCORES = {"dense": BASE[:4], "deform": BETTER[:4], "other": UNCLEAR[:4]}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The results of four seeds of three variants; their runs are gone."""
    first = rounds(tmp_path, f"seeds: {ROUNDS}, margin: 0.02")
    finish(first, SCORES)
    run = first.sweep.runs[0].folder
    rows = run.metrics.read_text()
    run.metrics.write_text(json.dumps(ATTENTION) + "\n" + rows)
    run.write_status(state="done")
    attempts.record_start(run, 0, 0, {"sources": "a1b2c3d4", "torch": "2"})
    attempts.record_end(run, "done")
    folder = run.path.parent
    before = dataclasses.replace(compare([folder]), notes=[])
    assert main(["compare", str(folder), "--save", str(tmp_path / "saved")]) == 0
    shutil.rmtree(tmp_path / "runs")
    assert dataclasses.replace(compare([tmp_path / "saved"]), notes=[]) == before
    return tmp_path / "saved"


def test_saved_results_compare_as_the_runs_did(saved, capsys):
    (record, *_), _ = read_records([saved])
    assert record.environments == [{"sources": "a1b2c3d4", "torch": "2"}]
    assert ATTENTION in record.metrics
    assert record.config.seed == 10
    files = sorted(path.name for path in saved.iterdir())
    assert files == ["comparison.csv", "comparison.html", "comparison.md", "results.json"]
    assert main(["compare", str(saved)]) == 0
    assert "deform is better than dense" in capsys.readouterr().out
    assert sorted(path.name for path in saved.iterdir()) == files


def test_saved_results_keep_the_baseline_and_margin_they_were_compared_with(saved, tmp_path):
    given = ["--baseline", "other", "--margin", "0.5", "--save", str(tmp_path / "again")]
    assert main(["compare", str(saved), *given]) == 0
    paired = compare([tmp_path / "again"]).paired
    assert paired is not None
    assert (paired.baseline, paired.margin, paired.is_given) == ("other", 0.5, True)


def test_included_results_count_as_finished_runs(saved, tmp_path):
    following = rounds(tmp_path, f"seeds: {ROUNDS}, margin: 0.02, include: ['{saved}']")
    assert needed(following) == {"dense": [14, 15], "deform": [], "other": [14, 15]}
    assert following.describe()[0] == "12 runs finished in sweep.include"
    finish(following, {"dense": BASE, "other": UNCLEAR})
    for run in following.sweep.runs:
        if run.seed < 14:
            shutil.rmtree(run.folder.path, ignore_errors=True)
    comparison = compare([tmp_path / "runs"])
    assert [variant.options["variant"] for variant in comparison.variants] == ["dense", "deform", "other"]
    assert [len(variant.seeds) for variant in comparison.variants] == [8, 4, 8]
    assert f"Included: 12 of 12 runs of {saved}; others have other configs." in comparison.notes


def test_results_of_other_configs_are_not_used(saved, tmp_path):
    sweep = f"seeds: {ROUNDS}, include: ['{saved}']"
    changed = experiment(tmp_path, sweep)
    longer = type(changed)(changed.path, ["train.steps=6"])
    other = SeedRounds(expand_sweep(longer), longer.config())
    assert all(seeds == [10, 11, 12, 13] for seeds in needed(other).values())


def test_own_runs_win_over_included_ones(saved, tmp_path):
    following = rounds(tmp_path, f"seeds: {ROUNDS}, include: ['{saved}']")
    finish(following, {"dense": [0.5, 0.5, 0.5, 0.5], "deform": BETTER[:4]})
    dense = compare([tmp_path / "runs"]).variants[0]
    assert dense.estimates["val/AP"].mean == 0.5


def with_environment(environments: list[Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A change of results: the environments of the first run."""
    return lambda content: content | {"runs": [content["runs"][0] | {"environments": environments}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content | {"format": 2}, r"results\.json: format 2, expected 1"),
        (lambda content: {"format": 1}, r"results\.json: corrupt \(KeyError: 'configs'\)"),
        (lambda content: content | {"runs": [{}]}, r"results\.json: corrupt"),
        (lambda content: content | {"runs": []}, r"results\.json: no runs in it"),
        (with_environment([{"sources": []}]), r"results\.json: corrupt \(ValueError: fields"),
        (with_environment([3]), r"results\.json: corrupt \(ValueError: fields"),
    ],
)
def test_corrupt_results_are_one_line(saved, change, message):
    path = saved / "results.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message):
        read_records([saved])
