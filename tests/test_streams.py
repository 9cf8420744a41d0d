"""Programs whose standard streams are closed, or whose reader ends, neither fail nor leave runs behind."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.run_folder import create_sweep, finish
from support.sweep import write_tiny

from attnzoo import __main__ as attnzoo_main
from attnzoo.errors import ExitCode
from attnzoo.report.status import sweep_status
from attnzoo.report.summary import summarize
from attnzoo.rundir.costs import read_costs
from attnzoo.streams import EchoHandler


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams(closed: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "attnzoo", "list"]
    redirected = f'exec "$@" {closed}'
    ended = subprocess.run(["sh", "-c", redirected, "sh", *command], capture_output=True, text=True, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_files_do_not_take_the_numbers_of_closed_streams(tmp_path: Path) -> None:
    """What C libraries print would go into them."""
    code = f"from attnzoo import streams; streams.open_missing(); print(open({str(tmp_path / 'f')!r}, 'w').fileno())"
    command = f"print = lambda n: open({str(tmp_path / 'n')!r}, 'w').write(str(n)); {code}"
    subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", command], check=True)
    assert int((tmp_path / "n").read_text()) > 2


def test_runs_stop_if_nobody_reads_the_output(tmp_path: Path) -> None:
    """As in `attnzoo run tiny.yaml | head -1`: the runs would go on alone."""
    write_tiny(tmp_path)
    command = [sys.executable, "-m", "attnzoo.run", "tiny.yaml", "train.steps=100000"]
    with subprocess.Popen(command, text=True, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline().startswith("[1/2]")
        launcher.stdout.close()
        assert launcher.stderr is not None
        errors = launcher.stderr.read()
        assert launcher.wait(120) == ExitCode.BROKEN_PIPE
    assert "Traceback" not in errors
    states = [status.state for status in sweep_status(tmp_path / "runs" / "tiny")]
    assert set(states) <= {"interrupted", "pending"}
    assert not any(status.active for status in sweep_status(tmp_path / "runs" / "tiny"))


@contextmanager
def unread_output() -> Iterator[None]:
    """Standard output is a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "stdout", stream)
        try:
            yield
        finally:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def test_log_that_nobody_reads_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with unread_output():
        handler = EchoHandler()
        for _ in range(2):
            handler.handle(logging.makeLogRecord({"msg": "a step", "levelno": logging.INFO}))
    assert "Traceback" not in capsys.readouterr().err


def test_the_final_comparison_is_written_if_nobody_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `attnzoo run x.yaml | head -20`."""
    monkeypatch.chdir(tmp_path)
    runs = [run.folder for run in create_sweep(range(2))]
    for run in runs:
        finish(run)
    with unread_output(), pytest.raises(BrokenPipeError):
        summarize(Path("runs/x"), [run.path for run in runs])
    assert "0.5" in Path("runs/x/comparison.md").read_text()
    assert Path("runs/x/comparison.html").exists()


@pytest.mark.slow
def test_costs_are_written_if_nobody_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    create_sweep(range(1))
    with unread_output():
        assert attnzoo_main.main(["cost", "runs/x", "--seconds", "0.1"]) == ExitCode.BROKEN_PIPE
    assert read_costs(Path("runs/x")) is not None
