"""Jobs that have the numbers in the ledger and are of others: they are told from the sweep's own by their comments."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.run_folder import create_sweep
from support.submissions import TEST_ONLY, accepted, prepared, run, stand_in

from attnzoo import __main__ as attnzoo_main
from attnzoo.report.status import sweep_status
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.ledger import job_comment
from attnzoo.sweep.folder import SweepFolder
from attnzoo.sweep.supervise import supervise

OTHERS = ["attnzoo /elsewhere/slurm/001", "attnzoo /elsewhere", "(null)", "mine"]


def submitted(folder: Path, seeds: str, monkeypatch: pytest.MonkeyPatch) -> SweepFolder:
    """A sweep whose runs were submitted as job 7."""
    sweep = prepared(folder, seeds, monkeypatch, f"{TEST_ONLY}echo >>calls; {accepted(7)}")
    stand_in("scancel", "echo $* >>cancelled")
    assert run() == 0
    return sweep


def queue(*jobs: str, comment: str) -> None:
    """Jobs that squeue knows, in every state that is asked for."""
    rows = "\n".join(f"{job}|PENDING||1:00|Priority|{comment}" for job in jobs)
    Path("queue").write_text(f"{rows}\n", newline="")
    stand_in("squeue", "cat queue")


def own_comment(sweep: SweepFolder) -> str:
    return job_comment(sweep.ledger.submission_folder("001"))


@pytest.mark.parametrize("comment", OTHERS)
def test_the_job_of_another_is_neither_shown_nor_waited_for_nor_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], comment: str
) -> None:
    """SLURM gives numbers again after it was installed anew."""
    sweep = submitted(tmp_path, "0, 1", monkeypatch)
    queue("7_0", "7_1", comment=comment)
    for status in sweep_status(sweep.path):
        assert (status.state, status.active, status.missing, status.job) == ("pending", False, True, None)
        assert status.note == f"not submitted: job {status.other_job} is not of this sweep"
    capsys.readouterr()
    assert attnzoo_main.main(["cancel", str(sweep.path)]) == 0
    left = "job 7 is not of this sweep, by its comment; left alone"
    assert capsys.readouterr().out.splitlines() == ["cancelled: 0 of 2 runs (0 SLURM jobs, 0 local)", left]
    assert not Path("cancelled").exists()
    stand_in("sbatch", f"{TEST_ONLY}{accepted(8)}")
    assert run() == 0
    assert [values["job"] for values in sweep.ledger.read()["submissions"].values()] == ["7", "8"]


@pytest.mark.parametrize("program", ["squeue", "sacct"])
def test_a_job_without_a_known_comment_counts_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    sweep = submitted(tmp_path, "0, 1", monkeypatch)
    if program == "squeue":
        queue("7_0", "7_1", comment="")
    else:
        stand_in("sacct", "printf '7_%s|CANCELLED by 1||\\n' 0 1")
    state = {"squeue": ("pending", "Priority"), "sacct": ("cancelled", "")}[program]
    assert [(status.state, status.note, status.job) for status in sweep_status(sweep.path)] == [
        (*state, "7_0"),
        (*state, "7_1"),
    ]


def test_accounting_tells_the_jobs_of_others_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With AccountingStoreFlags=job_comment; a comment may have line breaks, and the character between the fields."""
    sweep = submitted(tmp_path, "0, 1", monkeypatch)
    stand_in("sacct", "printf '7_%s|FAILED|n1|a|b\\nc\\n' 0 1")
    assert [(status.state, status.missing) for status in sweep_status(sweep.path)] == [("pending", True)] * 2
    stand_in("sacct", f"printf '7_%s|FAILED|n1|{own_comment(sweep)}\\n' 0 1")
    assert [status.state for status in sweep_status(sweep.path)] == ["failed"] * 2


def test_links_to_the_folder_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the path that the user gives nor in the comment, as after the folder was moved behind a link."""
    sweep = submitted(tmp_path, "0", monkeypatch)
    queue("7", comment=own_comment(sweep))
    Path("link").symlink_to("runs")
    assert sweep_status(Path("link/x"))[0].job == "7"
    Path("runs").rename("elsewhere")
    Path("runs").symlink_to("elsewhere")
    (status,) = sweep_status(Path("elsewhere/x"))
    assert (status.job, status.active) == ("7", True)


def test_the_job_of_the_original_is_not_that_of_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = submitted(tmp_path, "0, 1", monkeypatch)
    queue("7_0", "7_1", comment=own_comment(sweep))
    shutil.copytree("runs", "copy")
    assert attnzoo_main.main(["cancel", "copy/x", "seed=1"]) == 0
    assert not Path("cancelled").exists()
    assert attnzoo_main.main(["cancel", "runs/x", "seed=1"]) == 0
    assert Path("cancelled").read_text() == "--quiet 7_1\n"


LOCKED = """
import json, signal, sys
from pathlib import Path
from attnzoo.rundir import process
from attnzoo.rundir.lock import run_lock
signal.signal(signal.SIGTERM, signal.SIG_DFL)  # tests of the supervisor leave it ignored
with run_lock(Path(sys.argv[1])):
    print(json.dumps(process.current()), flush=True)
    sys.stdin.read()
"""


def test_the_process_of_the_original_is_not_that_of_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`cancel` of a copy stopped the original."""
    monkeypatch.chdir(tmp_path)
    (run,) = create_sweep([0])
    command = [sys.executable, "-c", LOCKED, str(run.folder.path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        run.folder.write_status(state="running", **json.loads(process.stdout.readline()))
        shutil.copytree("runs", "copy")
        assert [sweep_status(Path(folder, "x"))[0].state for folder in ("runs", "copy")] == ["running", "dead"]
        assert attnzoo_main.main(["cancel", "copy/x"]) == 0
        assert capsys.readouterr().out == "cancelled: 0 of 1 run (0 SLURM jobs, 0 local)\n"
        assert process.poll() is None
        assert attnzoo_main.main(["cancel", "runs/x"]) == 0
        assert process.wait(timeout=20) == -signal.SIGTERM
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("others", [["7_0", "7_1"], []], ids=["another array", "none"])
def test_a_run_that_trains_without_a_job_has_none_to_cancel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], others: list[str]
) -> None:
    """`scancel 7` would end the whole array."""
    sweep = submitted(tmp_path, "0", monkeypatch)
    queue(*others, comment="(null)")
    (entry,) = sweep_status(sweep.path)
    RunFolder(sweep.path / entry.name).write_status(state="running", host="elsewhere", pid=1, started="x")
    assert sweep_status(sweep.path)[0].active
    capsys.readouterr()
    assert attnzoo_main.main(["cancel", str(sweep.path)]) == 0
    assert "is running on another host; cancel it there" in capsys.readouterr().out
    assert not Path("cancelled").exists()


@pytest.mark.parametrize("name", ["a\rb", "a\u2028b", "a\x85b", "a|b", "a 'b' \"c\"", "é 漢", "a\tb"])
def test_odd_names_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """squeue prints the comment as it is: a part of it would be the comment of another."""
    (tmp_path / name).mkdir()
    sweep = submitted(tmp_path / name, "0", monkeypatch)
    queue("7", comment=own_comment(sweep))
    (status,) = sweep_status(sweep.path)
    assert (status.job, status.active) == ("7", True)


@pytest.mark.parametrize("number", ["999", "3"], ids=["unknown", "of another"])
def test_jobs_whose_number_is_lost_are_found_by_their_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    """`cancel` said "0 of 2", and `run` submitted again, while they were queued."""
    sweep = submitted(tmp_path, "0, 1", monkeypatch)
    queue("7_0", "7_1", comment=own_comment(sweep))
    stand_in("squeue", "cat queue; echo '3_0|PENDING||1:00|Priority|attnzoo /elsewhere/slurm/001'")
    (sweep.ledger.submission_folder("001") / "job").write_text(f"{number}\n")
    sweep.ledger.path.write_text("null")
    assert [(status.active, status.job) for status in sweep_status(sweep.path)] == [(True, "7_0"), (True, "7_1")]
    assert run() == 0
    assert Path("calls").read_text().count("\n") == 1
    sweep.ledger.path.write_text("null")
    capsys.readouterr()
    assert attnzoo_main.main(["cancel", str(sweep.path)]) == 0
    assert capsys.readouterr().out == "cancelled: 2 of 2 runs (2 SLURM jobs, 0 local)\n"
    assert Path("cancelled").read_text() == "--quiet 7_0 7_1\n"
    assert sweep.ledger.read()["submissions"]["001"]["job"] == "7"


def test_a_job_whose_number_is_damaged_trains_if_the_ledger_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sweep = submitted(tmp_path, "0", monkeypatch)
    submission = sweep.ledger.submission_folder("001").resolve()
    (submission / "job").write_text("999\n")
    content = json.loads((submission / "jobs.json").read_text())
    (submission / "jobs.json").write_text(json.dumps(content | {"code": "/"}))  # attnzoo is not imported from there
    for name in ("scontrol", "sinfo"):
        stand_in(name, "")
    stand_in("srun", "touch trained")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with preserved_handlers(), pytest.raises(SystemExit):
        supervise(str(submission))
    assert "trains nothing" not in caplog.text
    assert Path("trained").exists()


@contextmanager
def preserved_handlers() -> Iterator[None]:
    """The supervisor changes those of its process."""
    signals = [getattr(signal, f"SIG{name}") for name in ("TERM", "CONT", "HUP", "INT", "QUIT", "USR1", "USR2")]
    handlers = [signal.getsignal(each) for each in signals]
    try:
        yield
    finally:
        for each, handler in zip(signals, handlers, strict=True):
            signal.signal(each, handler)
