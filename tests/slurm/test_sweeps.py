"""Whole sweeps on a real cluster: submission, the ledger, a crash while submitting, and edits of the source."""

import csv
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import slurm_submit
from support.corrupt import corrupt
from support.engine import results
from support.slurm import PLUGIN, report, wait
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from attnzoo import __main__ as attnzoo_main
from attnzoo.errors import ExitCode
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.ledger import Ledger

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
MACHINE_DEPENDENT = ("cpu_hours", "peak_mib")
SIX = ("sweep.grid={model.ffn: [16, 24, 32]}", "sweep.seeds=[0, 1]", "sweep.costs=false", "train.steps=12")


def submit_elsewhere(sweep, *arguments: str, program: tuple[str, ...] = ("-m", "attnzoo.run")) -> int:
    """Submit in a separate process."""
    command = [sys.executable, *program, str(sweep.file), f"output={sweep.folder / 'runs'}", "launcher=slurm"]
    return subprocess.run([*command, *arguments], capture_output=True, timeout=300).returncode


def test_sweep_on_two_nodes_equals_the_local_launcher(cluster, sweep):
    """With cpus_per_task=2, a node of four CPUs takes two at a time."""
    sweep.submit(*SIX, "slurm.parallelism=4", "slurm.cpus_per_task=2")
    content = Ledger(sweep.runs).read()
    (submission,) = content["submissions"].values()
    assert len(submission["runs"]) == 6  # more than run at a time
    most = 0

    def at_once() -> bool:
        nonlocal most
        most = max(most, cluster.ask("squeue", "-h", "-t", "RUNNING", "-o", "%T").count("RUNNING"))
        return not any(status.active for status in sweep.states().values())

    wait(at_once, 300, "for the sweep", pause=0.5)
    states = sweep.states()
    assert {status.state for status in states.values()} == {"done"}
    assert most == 4
    nodes = {cluster.job(sweep.job(name))["NodeList"] for name in states}
    assert nodes == {"n1", "n2"}
    local = sweep.folder / "local"
    assert sweep.start(*SIX, f"output={local}", "jobs=2", "launcher=local") == 0
    for name in states:
        assert results(sweep.run(name)) == results(RunFolder(local / "faults" / name))
    assert attnzoo_main.main(["compare", str(sweep.runs)]) == 0
    assert metrics_of(sweep.runs) == metrics_of(local / "faults")
    assert hparams(sweep.runs) == hparams(local / "faults")
    assert len(hparams(sweep.runs)) == 1 + len(states)


def metrics_of(sweep: Path) -> list[list[str]]:
    """The table in comparison.csv without times and memory."""
    header, *rows = csv.reader((sweep / "comparison.csv").read_text().splitlines())
    kept = [index for index, name in enumerate(header) if name.removesuffix("_ci95") not in MACHINE_DEPENDENT]
    assert {"AP", "params", "gflops"} <= {header[index] for index in kept}
    return [[row[index] for index in kept] for row in (header, *rows)]


def hparams(sweep: Path) -> dict[str, HParamsPluginData]:
    """TensorBoard's HParams of a sweep and its runs, without times."""
    contents = {}
    for path in sweep.rglob("*.hparams"):
        (event,) = [event for event in EventFileLoader(str(path)).Load() if event.HasField("summary")]
        (value,) = event.summary.value
        content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
        content.experiment.ClearField("time_created_secs")
        content.session_start_info.ClearField("start_time_secs")
        contents[str(path.parent.relative_to(sweep))] = content
    return contents


def test_dry_run_prints_runs_resources_and_scripts_and_writes_nothing(cluster, sweep, capsys):
    groups = "sweep.zip={model.ffn: [16, 24, 32], slurm.cpus_per_task: [1, 2, 2]}"
    options = "slurm.options={nice: 10, exclusive: true, overcommit: false}"
    assert sweep.start("launcher=slurm", groups, "sweep.seeds=[0, 1]", "slurm.parallelism=3", options, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "group 1: 2 runs with nodes=1, ntasks_per_node=1, cpus_per_task=1, time=60, array_parallelism=3\n" in out
    assert "group 2: 4 runs with" in out
    assert "  3: ffn=32-seed=1\n" in out
    assert "#SBATCH --array=0-3%3\n" in out
    assert out.count("#SBATCH --signal=USR2@20\n") == out.count("#SBATCH --nice=10\n") == 2
    assert out.count("#SBATCH --exclusive\n") == 2
    assert "overcommit" not in out
    assert not sweep.runs.exists()
    assert cluster.ask("squeue", "--noheader", "--states=all", "--format=%k").count(str(sweep.runs)) == 0


def test_submitting_again_adds_only_missing_runs(cluster, sweep, capsys):
    sweep.submit("train.steps=5", "sweep.seeds=[0]")
    sweep.submit("train.steps=5", "sweep.seeds=[0, 1]")
    assert [submission["runs"] for submission in Ledger(sweep.runs).read()["submissions"].values()] == [
        ["seed=0"],
        ["seed=1"],
    ]
    sweep.submit("train.steps=5", "sweep.seeds=[0, 1]")
    assert len(Ledger(sweep.runs).read()["submissions"]) == 2
    assert "2 of 2 runs skipped (done, already submitted, corrupt or not selected)" in capsys.readouterr().out
    assert {status.state for status in sweep.wait_for_end().values()} == {"done"}


def test_corrupt_runs_are_reported_and_the_others_submitted(cluster, sweep, capsys):
    sweep.submit("train.steps=5", "sweep.seeds=[0, 1]")
    assert {status.state for status in sweep.wait_for_end().values()} == {"done"}
    corrupt(sweep.run("seed=0").config, "cut at a line end")
    for seeds, message in (("[0, 1]", "1 of 2 runs are already done"), ("[0, 1, 2]", "2 of 3 runs skipped")):
        capsys.readouterr()
        assert sweep.start("launcher=slurm", "train.steps=5", f"sweep.seeds={seeds}") == ExitCode.FAILED
        out, err = capsys.readouterr()
        assert message in out
        assert err == f"corrupt: {sweep.run('seed=0').corruption()}\n"
    assert [len(submission["runs"]) for submission in Ledger(sweep.runs).read()["submissions"].values()] == [2, 1]
    states = {name: status.state for name, status in sweep.wait_for_end().items()}
    assert states == {"seed=0": "corrupt", "seed=1": "done", "seed=2": "done"}


def test_cancel_also_ends_the_job_of_a_corrupt_run(cluster, sweep):
    sweep.submit("train.steps=5", "sweep.seeds=[0, 1]", "slurm.options={hold: true}")
    sweep.run("seed=0").write_status(state="interrupted", signal="SIGTERM")
    sweep.run("seed=0").config.write_bytes(b"")
    assert (sweep.state("seed=0").state, sweep.state("seed=0").active) == ("corrupt", True)
    assert attnzoo_main.main(["cancel", str(sweep.runs)]) == ExitCode.OK
    states = {name: status.state for name, status in sweep.wait_for_end().items()}
    assert states == {"seed=0": "corrupt", "seed=1": "cancelled"}


def test_killed_submission_is_neither_lost_nor_repeated(cluster, sweep):
    """Killed after SLURM has the array, before submitit has named its pickles."""
    two = ("train.steps=5", "sweep.seeds=[0, 1]")
    assert submit_elsewhere(sweep, *two, program=(slurm_submit.__file__,)) == -signal.SIGKILL
    ((number, submission),) = Ledger(sweep.runs).read()["submissions"].items()
    assert submission["job"] is None
    listed = ("squeue", "--noheader", "--array", "--states=all", "--format=%k")
    assert cluster.ask(*listed).count(str(sweep.runs)) == 2
    assert all(status.active for status in sweep.states().values())
    sweep.submit(*two)
    states = sweep.wait_for_end()
    assert {name: status.state for name, status in states.items()} == {"seed=0": "done", "seed=1": "done"}
    assert cluster.ask(*listed).count(str(sweep.runs)) == 2
    assert len(list(Ledger(sweep.runs).submission_folder(number).glob("*_submitted.pkl"))) == 2
    report("submitting process killed", 1, max(status.steps_lost for status in states.values()), allowed=0)


def test_editing_the_source_does_not_affect_queued_jobs(cluster, sweep):
    plugin = shutil.copy(PLUGIN, sweep.folder / "mine.py")
    assert submit_elsewhere(sweep, f"plugins=[{plugin}]", "train.steps=5", "slurm.options={hold: true}") == 0
    (sweep.folder / "mine.py").write_text("raise SystemExit('edited')\n")
    assert (sweep.state().state, sweep.state().note) == ("pending", "JobHeldUser")
    cluster.ask("scontrol", "release", sweep.job())
    assert sweep.wait_for_end()["seed=3"].state == "done"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("slurm.partition=nowhere", "Invalid partition name"),
        ("slurm.time=2-00:00:00", "time limit is invalid"),
        ("slurm.gpus_per_node=3", "gres"),
        ("slurm.constraint=fast", "Invalid feature"),
        ("slurm.memory=1T", "node configuration is not available"),
        ("slurm.options={reservation: mine}", "reservation"),
        ("slurm.options={nosuch: x}", "unrecognized option '--nosuch=x'"),
    ],
)
def test_settings_that_slurm_rejects_are_errors_before_anything_is_written(cluster, sweep, capsys, change, message):
    assert sweep.start("launcher=slurm", change) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: sbatch rejects seed=3: ")
    assert message.lower() in err.lower()
    assert err.count("\n") == 1
    assert not sweep.runs.exists()


def test_rounds_of_seeds_are_one_array_each(cluster, sweep, monkeypatch):
    """`run` adds the next round when the last is finished, `--follow` waits and adds all."""
    monkeypatch.setattr("attnzoo.sweep.run.FOLLOW_SECONDS", 0.5)
    rounds = ["train.steps=5", "sweep.variants={a: {}, b: {model.ffn: 24}}"]
    rounds.append("sweep.seeds={until: decided, at_least: 2, at_most: 4}")
    sweep.submit(*rounds)
    sweep.submit(*rounds)  # the first round is not finished: nothing is added
    sweep.wait_for_end()
    sweep.submit(*rounds)
    assert [submission["runs"] for submission in Ledger(sweep.runs).read()["submissions"].values()] == [
        ["a-seed=0", "a-seed=1", "b-seed=0", "b-seed=1"],
        ["a-seed=2", "b-seed=2"],
    ]
    assert sweep.start("launcher=slurm", *rounds, "--follow") == ExitCode.OK
    submitted = [submission["runs"] for submission in Ledger(sweep.runs).read()["submissions"].values()]
    assert submitted[2:] == [["a-seed=3", "b-seed=3"]]
    assert {status.state for status in sweep.wait_for_end().values()} == {"done"}
    assert "undecided" in (sweep.runs / "comparison.md").read_text()
