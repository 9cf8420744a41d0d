"""Submissions through submitit to programs that stand for SLURM's."""

import json
import pickle
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from submitit.core.utils import DelayedSubmission
from support.submissions import (
    REFUSED,
    TEST_ONLY,
    UNCERTAIN,
    accepted,
    in_queue,
    prepared,
    run,
    stand_in,
    submit_runs,
)

from attnzoo import slurm
from attnzoo.config.load import Experiment
from attnzoo.errors import UserError
from attnzoo.report.status import UNCERTAIN_SECONDS, sweep_status
from attnzoo.rundir.ledger import Ledger, job_comment, job_id_of
from attnzoo.sweep import pickles, snapshot, submit
from attnzoo.sweep.expand import expand
from attnzoo.sweep.folder import SweepFolder
from attnzoo.sweep.supervise import supervise


@pytest.mark.parametrize("seeds", ["0", "0, 1, 2, 3"])
def test_the_script_of_a_dry_run_is_the_submitted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: str
) -> None:
    folder = prepared(tmp_path, seeds, monkeypatch, f"cp $1 {tmp_path}/submitted; {accepted(7)}")
    runs = folder.assign(expand(Experiment("x.yaml")))
    (group,) = submit.group_by_resources(runs)
    (line,) = submit_runs(folder, runs)
    assert line.startswith(f"submitted {'1 run' if len(runs) == 1 else '4 runs'} as job 7 ")
    (code,) = (folder.path / "slurm" / "code").iterdir()
    submitted = (tmp_path / "submitted").read_text()
    assert submitted == group.script(folder.ledger.submission_folder("001").resolve(), code.resolve())
    assert ("#SBATCH --array=0-3%3" in submitted) == (len(runs) == 4)
    assert "#SBATCH --nice=10" in submitted
    assert f"{sys.executable} -u -m submitit.core._submit" in submitted
    assert folder.ledger.read()["submissions"]["001"]["job"] == "7"
    assert f"group 1: {'1 run' if len(runs) == 1 else '4 runs'} with " in submit.format_dry_run([group], folder)


def test_variables_of_the_user_do_not_change_a_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With SBATCH_ARRAY_INX=0 one task of four was submitted, and the others waited without end."""
    folder = prepared(tmp_path, "0, 1", monkeypatch, f"env > {tmp_path}/environment; {accepted(7)}")
    for name in ("SBATCH_ARRAY_INX", "SBATCH_PARTITION", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "0")
    runs = folder.assign(expand(Experiment("x.yaml")))
    submit.check(submit.group_by_resources(runs), folder)
    message = "SBATCH_ARRAY_INX, SBATCH_PARTITION: ignored; set keys of slurm, or slurm.options, instead\n"
    assert capsys.readouterr().err == message
    (tmp_path / "environment").unlink()
    submit_runs(folder, runs)
    variables = [line for line in (tmp_path / "environment").read_text().splitlines() if line.startswith("SBATCH_")]
    assert variables == ["SBATCH_ACCOUNT=0"]


def test_what_sbatch_refuses_is_one_line_and_leaves_no_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run keeps what it had before, and the number is not used again."""
    folder = prepared(tmp_path, "0", monkeypatch, accepted(7))
    runs = folder.assign(expand(Experiment("x.yaml")))
    submit_runs(folder, runs)
    before = folder.ledger.read()
    stand_in("sbatch", REFUSED)
    with pytest.raises(UserError, match=r"^sbatch: invalid partition$") as caught:
        submit_runs(folder, runs)
    assert caught.value.keys == ("slurm",)
    assert folder.ledger.read() == before
    assert not list(folder.ledger.submission_folder("002").glob("*.pkl"))
    stand_in("sbatch", accepted(8))
    submit_runs(folder, runs)
    assert {number: values["job"] for number, values in folder.ledger.read()["submissions"].items()} == {
        "001": "7",
        "003": "8",
    }


def test_groups_after_a_refused_one_leave_no_submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared(tmp_path, "0", monkeypatch, f"[ -e {tmp_path}/first ] && {{ {REFUSED}; }}; >first; {accepted(7)}")
    sweep = "sweep.zip={model.ffn: [16, 32, 64], slurm.cpus_per_task: [1, 2, 3]}"
    runs = folder.assign(expand(Experiment("x.yaml", [sweep])))
    with pytest.raises(UserError, match=r"invalid partition; before it: submitted 1 run as job 7 \("):
        submit_runs(folder, runs)
    content = folder.ledger.read()
    assert [values["runs"] for values in content["submissions"].values()] == [["ffn=16-seed=0"]]
    assert ["submission" in entry for entry in content["runs"].values()] == [True, False, False]


def test_a_run_that_the_list_of_a_job_does_not_have_has_no_job(tmp_path: Path) -> None:
    """As after a submission whose number was used again."""
    with Ledger(tmp_path).update() as content:
        content["runs"] = {name: {"submission": "001", "task": task} for task, name in enumerate("abc")}
        content["submissions"]["001"] = {"job": "7", "runs": ["a", "c"], "time": 0.0}
    content = Ledger(tmp_path).read()
    assert [job_id_of(content, name) for name in "abc"] == ["7_0", None, None]


def test_jobs_of_a_sweep_whose_folder_was_deleted_train_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its numbers are used again, and its jobs find the submission of others."""
    folder = prepared(tmp_path, "0", monkeypatch, accepted(8))
    (run,) = folder.assign(expand(Experiment("x.yaml")))
    submit_runs(folder, [run])
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    submission = folder.ledger.submission_folder("001").resolve()
    (submission / "jobs.json").write_text(
        (submission / "jobs.json").read_text().replace('"code": "', '"code": "/", "was": "')
    )
    stand_in("srun", "touch trained")
    with pytest.raises(SystemExit, match="2"):
        supervise(str(submission))
    assert "job 7 trains nothing" in caplog.text
    assert not Path("trained").exists()


def test_the_newest_job_of_a_comment_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(tmp_path, "0", monkeypatch, "")
    stand_in("squeue", "printf '%s|PENDING||1:00|Priority|a\\n' 12_0 9_0 12_1 7")
    assert slurm.jobs_by_comment() == {"a": "12"}


@pytest.mark.parametrize("seconds_until_known", ["at once", "later"])
def test_job_that_slurm_took_although_sbatch_timed_out_is_not_submitted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds_until_known: str
) -> None:
    folder = prepared(tmp_path, "0", monkeypatch, f"{TEST_ONLY}echo >>calls; {UNCERTAIN}")
    if seconds_until_known == "at once":
        stand_in("squeue", in_queue(folder, "7"))
        assert run() == 0
    else:
        assert run() == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(
            "error: sbatch: Socket timed out on send/recv operation; SLURM may have accepted the job"
        )
        (status,) = sweep_status(folder.path)
        assert (status.state, status.note, status.active) == (
            "pending",
            "submitted, not yet confirmed by SLURM",
            True,
        )
        assert run() == 0  # nothing to submit
        stand_in("squeue", in_queue(folder, "7"))
    (status,) = sweep_status(folder.path)
    assert (status.state, status.note, status.job) == ("pending", "Priority", "7")
    assert run() == 0
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_job_that_never_appears_is_submitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared(tmp_path, "0", monkeypatch, f"{TEST_ONLY}{UNCERTAIN}")
    assert run() == 2
    stand_in("sbatch", f"{TEST_ONLY}{accepted(8)}")
    with folder.ledger.update() as content:
        content["submissions"]["001"]["time"] -= UNCERTAIN_SECONDS
    (status,) = sweep_status(folder.path)
    assert (status.active, status.missing) == (False, True)
    assert run() == 0
    stand_in("squeue", in_queue(folder, "8", "002"))
    assert sweep_status(folder.path)[0].job == "8"


def test_two_submissions_at_once_submit_each_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have decided what is missing before either has written it."""
    folder = prepared(tmp_path, "0, 1", monkeypatch, f"{TEST_ONLY}echo >>calls; {accepted(7)}")
    comment = job_comment(folder.ledger.submission_folder("001"))
    stand_in("squeue", f"[ -e calls ] && printf '7_%s|PENDING||1:00|Priority|{comment}\\n' 0 1")
    both = threading.Barrier(2, timeout=60)
    inner = submit.check

    def check(*arguments: object) -> None:
        inner(*arguments)
        both.wait()

    monkeypatch.setattr(submit, "check", check)
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    submissions = folder.ledger.read()["submissions"]
    assert [values["runs"] for values in submissions.values()] == [["seed=0", "seed=1"]]
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("where", "name"), [("output", "a:b"), ("current", "a:b"), ("output", "a\\b"), ("current", "100%j")]
)
def test_paths_that_slurm_reads_otherwise_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, where: str
) -> None:
    (tmp_path / name).mkdir()
    prepared(tmp_path / name if where == "current" else tmp_path, "0", monkeypatch, f"{TEST_ONLY}{accepted(7)}")
    for options in ([], ["--dry-run"]):
        assert run(f"output={tmp_path / (name if where == 'output' else 'runs')}", *options) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{where} folder " in line
        assert "with SLURM its path may not contain a" in line
    assert not list(tmp_path.glob("**/sweep.json"))


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Without its hash, as by a program that knows nothing of it."""
    content = json.loads(path.read_text())
    del content["sha256"]
    change(content)
    path.write_text(json.dumps(content))


def copied_before(folder: SweepFolder) -> Callable[..., Path]:
    """The snapshot of the code, at which the ledger has no submission yet, and is copied."""

    def create_snapshot(path: Path, plugins: Sequence[str]) -> Path:
        shutil.copy(folder.ledger.path, "before.json")
        return snapshot.create_snapshot(path, plugins)

    return create_snapshot


DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "bytes": lambda path: path.write_bytes(b"\xff\xfe"),
    "null": lambda path: path.write_bytes(b"null"),
    "list": lambda path: path.write_bytes(b"[]"),
    "cut": lambda path: path.write_bytes(b"{"),
    "deleted": Path.unlink,
    "no fields": lambda path: path.write_bytes(b"{}"),
    "no runs": lambda path: changed(path, lambda content: content.pop("runs")),
    "no submissions": lambda path: changed(path, lambda content: content.pop("submissions")),
    "runs without submission": lambda path: changed(
        path, lambda content: [entry.pop("submission") for entry in content["runs"].values()]
    ),
    "of before the submission": lambda path: shutil.copy("before.json", path),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_ledger_is_rebuilt_and_nothing_is_submitted_twice(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
) -> None:
    folder = prepared(tmp_path, "0, 1", monkeypatch, f"{TEST_ONLY}echo >>calls; {accepted(7)}")
    monkeypatch.setattr(submit, "create_snapshot", copied_before(folder))
    assert run() == 0
    comment = job_comment(folder.ledger.submission_folder("001"))
    stand_in("squeue", "\n".join(f"echo '7_{task}|PENDING||1:00|Priority|{comment}'" for task in (0, 1)))
    before = sweep_status(folder.path)
    entries = folder.entries()
    damage(folder.ledger.path)
    capsys.readouterr()
    assert sweep_status(folder.path) == before
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{folder.path / 'sweep.json'}: ")
    assert "rebuilt from the runs and their jobs" in line
    assert run() == 0
    assert len((tmp_path / "calls").read_text().splitlines()) == 1
    assert sweep_status(folder.path) == before
    kept = ("seed", "digest", "attempts", "submission", "task")
    rebuilt = folder.entries()
    assert [[rebuilt[name][key] for key in kept] for name in entries] == [
        [entry[key] for key in kept] for entry in entries.values()
    ]
    content = json.loads(folder.ledger.path.read_text())
    assert content["submissions"]["001"]["job"] == "7"
    assert time.time() - content["submissions"]["001"]["time"] < 100


def test_dry_run_where_slurm_is_not_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fatal = "sbatch: fatal: Could not establish a configuration source"
    prepared(tmp_path, "0", monkeypatch, f"echo '{fatal}' >&2; exit 1")
    assert run("--dry-run") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"SLURM does not answer: {fatal}: the job scripts were not validated" in out
    assert "#SBATCH --time=1\n" in out
    assert run() == 2
    assert not Path("runs").exists()


def test_answer_that_cannot_be_read_is_looked_up_by_the_comment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepared(tmp_path, "0", monkeypatch, f"{TEST_ONLY}echo done")
    stand_in("squeue", in_queue(folder, "7"))
    assert run() == 0
    assert capsys.readouterr().err == ""
    assert folder.ledger.read()["submissions"]["001"]["job"] == "7"


@pytest.mark.parametrize("seeds", ["0", "0, 1"])
def test_job_writes_the_pickle_that_a_killed_submitter_did_not_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: str
) -> None:
    """The same that submitit writes."""
    folder = prepared(tmp_path, seeds, monkeypatch, accepted(7))
    submit_runs(folder, folder.assign(expand(Experiment("x.yaml"))))
    submission = folder.ledger.submission_folder("001").resolve()
    monkeypatch.setattr(pickles, "WAIT_SECONDS", 0.0)
    for job in ["7"] if seeds == "0" else ["7_0", "7_1"]:
        path = submission / f"{job}_submitted.pkl"
        named = path.read_bytes()
        assert pickles.ensure_pickle(submission, job) == ""
        assert path.read_bytes() == named
        path.unlink()
        assert pickles.ensure_pickle(submission, job) == ""
        written, expected = DelayedSubmission.load(path).function, pickle.loads(named).function
        assert (written.func, written.args) == (expected.func, expected.args) == (supervise, (str(submission),))
        assert not list(submission.glob(f".{job}_*"))
    path.unlink()
    (submission / "jobs.json").unlink()
    assert pickles.ensure_pickle(submission, job).endswith("jobs.json: missing or corrupt; submit the run again")
    assert not path.exists()
