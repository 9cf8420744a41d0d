"""Status from ledger and run folders; what the scheduler adds is tested on a real cluster in tests/slurm."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attnzoo import __main__ as attnzoo_main
from attnzoo.errors import UserError
from attnzoo.report.status import counts, sweep_status
from attnzoo.rundir import attempts, process
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.ledger import Ledger


def sweep(folder: Path, names: list[str]) -> None:
    entry = {"overrides": {}, "options": {}, "seed": 0, "digest": "", "attempts": 0}
    with Ledger(folder).update() as content:
        content["runs"] = {name: dict(entry) for name in names}
    for name in names:
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text("name: x\n")


ANOTHER = """import json, sys
from attnzoo.rundir import process
print(json.dumps(process.current()), flush=True)
sys.stdin.read()"""


def states(folder: Path) -> dict[str, tuple[str, str]]:
    return {one.name: (one.state, one.note) for one in sweep_status(folder)}


def test_every_state_of_a_run_without_a_job(tmp_path: Path) -> None:
    sweep(tmp_path, ["new", "done", "failed", "stopped", "running", "killed", "reused", "elsewhere", "silent"])
    here = attempts.node_name()
    RunFolder(tmp_path / "done").write_status(state="done", step=9, steps=9, AP=0.5)
    RunFolder(tmp_path / "failed").write_status(state="failed", error="it was me")
    RunFolder(tmp_path / "stopped").write_status(state="interrupted", signal="SIGINT")
    RunFolder(tmp_path / "running").write_status(state="running", **process.current(), step=3, steps=9, eta=60)
    gone = subprocess.Popen(["true"])
    gone.wait()
    RunFolder(tmp_path / "killed").write_status(state="running", host=here, pid=gone.pid, started="boot:1")
    another = process.current() | {"started": "boot:1"}  # had our number before us
    RunFolder(tmp_path / "reused").write_status(state="running", **another)
    RunFolder(tmp_path / "elsewhere").write_status(state="running", host="far", pid=1)
    RunFolder(tmp_path / "silent").write_status(state="running", host="far", pid=1)
    os.utime(tmp_path / "silent" / "status.json", (time.time() - 999, time.time() - 999))
    found = states(tmp_path)
    assert found.pop("killed")[0] == "dead"
    assert found.pop("reused")[0] == "dead"
    assert found.pop("silent") == ("dead", "no heartbeat for 999 s")
    assert found == {
        "new": ("pending", "not submitted"),
        "done": ("done", ""),
        "failed": ("failed", "it was me"),
        "stopped": ("interrupted", "SIGINT"),
        "running": ("running", ""),
        "elsewhere": ("running", ""),
    }
    assert counts(sweep_status(tmp_path)) == {
        "done": 1,
        "running": 2,
        "pending": 1,
        "interrupted": 1,
        "dead": 3,
        "failed": 1,
    }


def test_a_run_waits_while_its_launcher_lives(tmp_path: Path) -> None:
    sweep(tmp_path, ["a"])
    assert sweep_status(tmp_path)[0].missing
    with subprocess.Popen([sys.executable, "-c", ANOTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        with Ledger(tmp_path).update() as content:
            content["local"] = json.loads(launcher.stdout.readline())
        assert states(tmp_path) == {"a": ("pending", "queued")}
        assert sweep_status(tmp_path)[0].active
    assert sweep_status(tmp_path)[0].missing  # its launcher has ended


def test_a_launcher_does_not_wait_for_itself(tmp_path: Path) -> None:
    """After a restart of a container it may have the number of the one before."""
    sweep(tmp_path, ["a"])
    with Ledger(tmp_path).update() as content:
        content["local"] = process.current() | {"started": "an earlier boot"}
    assert sweep_status(tmp_path)[0].missing


def test_a_cancelled_run_stays_cancelled(tmp_path: Path) -> None:
    sweep(tmp_path, ["a", "b"])
    RunFolder(tmp_path / "a").write_status(state="interrupted", signal="SIGTERM")
    assert attnzoo_main.main(["cancel", str(tmp_path), "c"]) == 2
    with Ledger(tmp_path).update() as content:
        content["runs"]["a"]["cancelled"] = time.time()
    assert states(tmp_path)["a"] == ("cancelled", "")


def test_starts_and_failures_of_the_machine_are_counted(tmp_path: Path) -> None:
    sweep(tmp_path, ["a"])
    run = RunFolder(tmp_path / "a")
    attempts.record_start(run, 0, steps_lost=0)
    attempts.record_end(run, attempts.MACHINE, "killed by SIGKILL")
    attempts.record_start(run, 0, steps_lost=4)
    attempts.record_start(run, 3, steps_lost=2)
    run.write_status(state="running", **process.current())
    (one,) = sweep_status(tmp_path)
    assert (one.restarts, one.machine_failures, one.steps_lost) == (2, 2, 6)


def test_json_holds_everything_and_failures_give_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(tmp_path, ["a", "b"])
    assert attnzoo_main.main(["status", str(tmp_path), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)[0]
    assert (first["name"], first["state"], first["missing"]) == ("a", "pending", True)
    RunFolder(tmp_path / "b").write_status(state="failed", error="x")
    assert attnzoo_main.main(["status", str(tmp_path)]) == 1
    assert "1 pending, 1 failed" in " ".join(capsys.readouterr().out.split())  # the title may be two lines


def test_classifiers_show_their_own_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, ["a", "b"])
    RunFolder(tmp_path / "a").write_status(state="done", step=9, steps=9, top1=0.75)
    assert attnzoo_main.main(["status", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "top-1" in out
    assert "0.750" in out
    assert " AP " not in out


def test_a_folder_without_a_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no sweep\.json in it"):
        sweep_status(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        sweep_status(tmp_path / "x")


def test_five_hundred_runs_need_neither_torch_nor_long(tmp_path: Path) -> None:
    """A second of processor time, of which the machine may have many at once."""
    sweep(tmp_path, [f"run-{number}" for number in range(500)])
    for number in range(500):
        RunFolder(tmp_path / f"run-{number}").write_status(state="done", step=9, steps=9, AP=0.5)
    code = (
        "import sys, time; from attnzoo.__main__ import main; code = main(['status', sys.argv[1]]);"
        "assert not {'torch', 'omegaconf'} & set(sys.modules); assert time.process_time() < 1; sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60, capture_output=True)
