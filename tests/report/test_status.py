"""Status from ledger and run folders; tests/slurm has SLURM's part, on a real cluster."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.run_folder import finish

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
    return {status.name: (status.state, status.note) for status in sweep_status(folder)}


def test_every_state_of_a_run_without_a_job(tmp_path: Path) -> None:
    sweep(tmp_path, ["new", "done", "failed", "stopped", "running", "killed", "reused", "elsewhere", "silent"])
    here = attempts.node_name()
    finish(RunFolder(tmp_path / "done"), steps=9)
    RunFolder(tmp_path / "failed").write_status(state="failed", error="it was me")
    RunFolder(tmp_path / "stopped").write_status(state="interrupted", signal="SIGINT")
    RunFolder(tmp_path / "running").write_status(state="running", **process.current(), step=3, steps=9, eta=60)
    gone = subprocess.Popen(["true"])
    gone.wait()
    RunFolder(tmp_path / "killed").write_status(state="running", host=here, pid=gone.pid, started="boot:1")
    another = process.current() | {"started": "boot:1"}  # had our process id before us
    RunFolder(tmp_path / "reused").write_status(state="running", **another)
    RunFolder(tmp_path / "elsewhere").write_status(state="running", host="far", pid=1)
    RunFolder(tmp_path / "silent").write_status(state="running", host="far", pid=1)
    os.utime(tmp_path / "silent" / "status.json", (time.time() - 999, time.time() - 999))
    notes = states(tmp_path)
    assert notes.pop("killed")[0] == "dead"
    assert notes.pop("reused")[0] == "dead"
    assert notes.pop("silent") == ("dead", "no heartbeat for 999 s")
    assert notes == {
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


def test_run_is_queued_while_its_launcher_is_alive(tmp_path: Path) -> None:
    sweep(tmp_path, ["a"])
    assert sweep_status(tmp_path)[0].missing
    with subprocess.Popen([sys.executable, "-c", ANOTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        with Ledger(tmp_path).update() as content:
            content["local"] = json.loads(launcher.stdout.readline())
        assert states(tmp_path) == {"a": ("pending", "queued")}
        assert sweep_status(tmp_path)[0].active
    assert sweep_status(tmp_path)[0].missing  # its launcher has ended


def test_launcher_does_not_wait_for_itself(tmp_path: Path) -> None:
    """After a restart of a container it may have the process id of the previous one."""
    sweep(tmp_path, ["a"])
    with Ledger(tmp_path).update() as content:
        content["local"] = process.current() | {"started": "an earlier boot"}
    assert sweep_status(tmp_path)[0].missing


def test_cancelled_run_stays_cancelled(tmp_path: Path) -> None:
    sweep(tmp_path, ["a", "b"])
    RunFolder(tmp_path / "a").write_status(state="interrupted", signal="SIGTERM")
    assert attnzoo_main.main(["cancel", str(tmp_path), "c"]) == 2
    with Ledger(tmp_path).update() as content:
        content["runs"]["a"]["cancelled"] = time.time()
    assert states(tmp_path)["a"] == ("cancelled", "")


def test_restarts_and_machine_failures_are_counted(tmp_path: Path) -> None:
    sweep(tmp_path, ["a"])
    run = RunFolder(tmp_path / "a")
    attempts.record_start(run, 0, steps_lost=0)
    attempts.record_end(run, attempts.MACHINE, "killed by SIGKILL")
    attempts.record_start(run, 0, steps_lost=4)
    attempts.record_start(run, 3, steps_lost=2)
    run.write_status(state="running", **process.current())
    (status,) = sweep_status(tmp_path)
    assert (status.restarts, status.machine_failures, status.steps_lost) == (2, 2, 6)


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
    finish(RunFolder(tmp_path / "a"), metric="val/top1", value=0.75)
    assert attnzoo_main.main(["status", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "top-1" in out
    assert "0.750" in out
    assert " AP " not in out


def test_folder_without_a_ledger_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no sweep\.json in it"):
        sweep_status(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        sweep_status(tmp_path / "x")


def test_five_hundred_runs_take_less_than_a_second_and_no_torch(tmp_path: Path) -> None:
    """A second of processor time, however busy the machine is."""
    sweep(tmp_path, [f"run-{number}" for number in range(500)])
    for number in range(500):
        finish(RunFolder(tmp_path / f"run-{number}"), steps=9)
    code = (
        "import sys, time; from attnzoo.__main__ import main; code = main(['status', sys.argv[1]]);"
        "assert not {'torch', 'omegaconf'} & set(sys.modules); assert time.process_time() < 1; sys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60, capture_output=True)


@pytest.mark.parametrize("as_json", [True, False])
def test_without_an_answer_of_slurm_the_run_folders_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:/usr/bin:/bin")
    folder = tmp_path / "x"
    folder.mkdir()
    sweep(folder, ["done", "waiting", "failed"])
    finish(RunFolder(folder / "done"))
    RunFolder(folder / "failed").write_status(state="failed", error="it was me")
    with Ledger(folder).update() as content:
        for task, entry in enumerate(content["runs"].values()):
            entry |= {"submission": "001", "task": task}
        content["submissions"]["001"] = {"job": "7", "runs": [*content["runs"]], "time": 0.0}
    assert attnzoo_main.main(["status", str(folder), *["--json"][: int(as_json)]]) == 1  # one failed
    out, err = capsys.readouterr()
    assert err == (
        "squeue: slurm_load_jobs error: Unable to contact slurm controller; the states are those of the run folders\n"
    )
    for text in ("done", "it was me", "7_1"):
        assert text in out
    assert attnzoo_main.main(["cancel", str(folder)]) == 2  # nothing is cancelled
    assert capsys.readouterr().err.startswith("error: squeue: ")


def test_brackets_in_paths_and_messages_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs [" / "x]"
    folder.mkdir(parents=True)
    sweep(folder, ["a"])
    RunFolder(folder / "a").write_status(state="failed", step=1, steps=2, error="no folder [/data/coco]")
    assert attnzoo_main.main(["status", str(folder)]) == 1
    assert "no folder [/data/coco]" in capsys.readouterr().out
