"""Control characters in the files of runs are printed as escapes: they could move the cursor or set a title."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.run_folder import create_sweep, finish

from attnzoo import __main__ as attnzoo_main
from attnzoo.report.status import last_line
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.ledger import Ledger
from attnzoo.sweep.expand import RunSpec
from attnzoo.sweep.local import SweepResult
from attnzoo.sweep.messages import print_other_sources, report_corrupt, report_failures
from attnzoo.sweep.outcome import ExitKind, Outcome

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\ra\u202eb"
ESCAPED = "\\x1b]0;owned\\x07\\x1b[2J\\x9b31m"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    monkeypatch.chdir(tmp_path)
    runs = create_sweep(range(3))
    finish(runs[0].folder)
    runs[1].folder.write_status(state="failed", error=HOSTILE)
    return runs


def assert_escaped(text: str) -> None:
    assert ESCAPED in text.replace("\n", "")
    assert not [char for char in text if char != "\n" and not char.isprintable()]


@pytest.mark.parametrize("options", [[], ["--watch"]])
def test_status_escapes_the_error_of_a_run(
    runs: list[RunSpec], capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    attnzoo_main.main(["status", "runs/x", *options])
    assert_escaped(capsys.readouterr().out)
    attnzoo_main.main(["status", "runs/x", "--json"])
    assert json.loads(capsys.readouterr().out)[1]["note"] == HOSTILE


def test_status_escapes_names_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger(tmp_path).update() as content:
        content["runs"] = {HOSTILE: {"attempts": 0}}
    attnzoo_main.main(["status", str(tmp_path)])
    assert_escaped(capsys.readouterr().out)


@pytest.mark.parametrize("options", [[], ["--markdown"]])
def test_comparisons_escape_what_they_quote(
    runs: list[RunSpec], capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    with Ledger(Path("runs/x")).update() as content:
        content["runs"]["seed=0"] |= {"variant": HOSTILE, "variant_name": HOSTILE}
    folder = RunFolder(Path("runs/x") / HOSTILE)
    folder.path.mkdir()
    folder.status.write_text("{")
    attnzoo_main.main(["compare", "runs/x", *options])
    assert_escaped(capsys.readouterr().out)
    if not options:
        assert_escaped(Path("runs/x/comparison.md").read_text())


def test_run_escapes_how_runs_ended(runs: list[RunSpec], capsys: pytest.CaptureFixture[str]) -> None:
    """Its reports of failures quote status.json or the last line of a log."""
    runs[2].folder.log.write_text(f"first\n{HOSTILE}\n")
    reason = last_line(runs[2].folder.log)
    outcomes = {"seed=1": Outcome(ExitKind.FAILED, HOSTILE), "seed=2": Outcome(ExitKind.NOT_STARTED, reason)}
    assert report_failures(runs, SweepResult(outcomes)) == 2
    err = capsys.readouterr().err
    assert_escaped(err)
    assert err.count("\n") == 2


def test_run_escapes_the_sources_of_runs(runs: list[RunSpec], capsys: pytest.CaptureFixture[str]) -> None:
    start = {"event": "start", "time": 0, "step": 0, "steps_lost": 0, "host": "a", "job": None}
    runs[0].folder.attempts.write_text(json.dumps(start | {"environment": {"sources": HOSTILE}}) + "\n")
    print_other_sources(runs)
    assert_escaped(capsys.readouterr().out)


def test_run_escapes_what_is_corrupt(runs: list[RunSpec], capsys: pytest.CaptureFixture[str]) -> None:
    path = runs[0].folder.path.with_name(HOSTILE)
    runs[0].folder.path.rename(path)
    (path / "status.json").write_text("{")
    spec = replace(runs[0], folder=RunFolder(path))
    assert report_corrupt([spec]) == 1
    assert_escaped(capsys.readouterr().err)
