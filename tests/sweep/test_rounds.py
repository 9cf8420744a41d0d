"""A sweep until it is decided, as a user runs it."""

from pathlib import Path

import pytest
from support.engine import TINY

from attnzoo import run as attnzoo_run
from attnzoo.errors import ExitCode
from attnzoo.report.compare import compare
from attnzoo.rundir.costs import read_costs
from attnzoo.rundir.ledger import Ledger

SWEEP = """
sweep:
  variants: {many: {}, few: {model.decoder.attention.points: 1}}
  aa: true
  seeds: {until: decided, at_least: 2, at_most: 3}
jobs: 2
"""


@pytest.mark.slow
@pytest.mark.long
def test_rounds_end_at_the_most_seeds_and_costs_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too short to learn anything: all scores are equal, and nothing can be decided."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY + SWEEP)
    overrides = ["train.steps=3", "train.eval_every=3", "train.checkpoint_every=3"]
    assert attnzoo_run.main(["tiny.yaml", *overrides]) == ExitCode.OK
    assert "undecided: 3 more runs, up to seed 2" in capsys.readouterr().out
    folder = tmp_path / "runs" / "tiny"
    names = [f"{name}-seed={seed}" for name in ("many", "few", "many-aa") for seed in range(3)]
    assert sorted(Ledger(folder).read()["runs"]) == sorted(names)
    paired = compare([folder]).paired
    assert paired is not None
    assert [(row.name, row.final.pairs, row.is_aa) for row in paired.rows] == [("few", 3, False), ("many-aa", 3, True)]
    costs = read_costs(folder)
    assert costs is not None
    assert [variant.name for variant in costs.variants] == ["many", "few", "many-aa"]
    assert attnzoo_run.main(["tiny.yaml", *overrides]) == ExitCode.OK
    assert "9 of 9 runs are already done" in capsys.readouterr().out
