"""Every kind of damage to a file of a finished run or to the ledger, and what each command says of it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.run_folder import create_sweep, finish

from attnzoo import __main__ as attnzoo_main
from attnzoo import run as attnzoo_run
from attnzoo.config.load import Experiment
from attnzoo.errors import ExitCode
from attnzoo.report.compare import compare
from attnzoo.rundir import attempts
from attnzoo.rundir.folder import CONFIG_HASH, RunFolder
from attnzoo.sweep.check_runs import check_runs
from attnzoo.sweep.expand import expand
from attnzoo.sweep.folder import SweepFolder

COMMANDS = ("run", "status", "compare", "cancel")

Damage = Callable[[Path], object]


def delete(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def zero_filled(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def zeros_in_the_middle(path: Path) -> None:
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + b"\0" * 20 + content[half + 20 :])


def latin1(path: Path) -> None:
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + b"\xe9" + content[half:])


def half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def without_last_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def line_added(line: str) -> Damage:
    def damage(path: Path) -> None:
        first, *others = path.read_text().splitlines(keepends=True)
        path.write_text("".join([first, *others[:3], f"{line}\n", *others[3:]]))

    return damage


def replaced(old: str, new: str) -> Damage:
    def damage(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return damage


def content(text: str) -> Damage:
    return lambda path: path.write_text(text)


def changed(**values: object) -> Damage:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | values))


CORRUPT = {
    "config.yaml": {
        "emptied": content(""),
        "deleted": delete,
        "folder": folder,
        "cut": half,
        "zero-filled": zero_filled,
        "zeros in the middle": zeros_in_the_middle,
        "Latin-1": latin1,
        "invalid YAML": line_added("]"),
        "unknown key": line_added("stesp: 3"),
        "changed value": replaced("log_every: 1", "log_every: 2"),
        "damaged hash": replaced(CONFIG_HASH, f"{CONFIG_HASH}0"),
    },
    "metrics.jsonl": {
        "emptied": content(""),
        "deleted": delete,
        "folder": folder,
        "cut": half,
        "zero-filled": zero_filled,
        "zeros in the middle": zeros_in_the_middle,
        "Latin-1": latin1,
        "without the last row": without_last_line,
        "list": line_added("[]"),
        "text": line_added('{"step": 2, "train/loss": "1"}'),
        "nested": line_added("[" * 100_000),
    },
    "status.json": {
        "emptied": content(""),
        "folder": folder,
        "cut": half,
        "zero-filled": zero_filled,
        "Latin-1": latin1,
        "list": content("[]"),
        "nested": content("[" * 100_000),
        "no state": content("{}"),
        "unknown state": changed(state="finished"),
        "state of another type": changed(state=["done"]),
        "failed without error": changed(state="failed"),
        "interrupted without signal": changed(state="interrupted", signal=None),
        "steps null": changed(steps=None),
        "step is text": changed(step="2"),
        "metric is text": changed(AP="0.5"),
        "eta is infinite": changed(state="running", eta=float("inf")),
        "pid is a list": changed(state="running", host=attempts.node_name(), started="x", pid=[]),
    },
    "attempts.jsonl": {"folder": folder},
}
CORRUPT = {name: kinds | {"pipe": pipe, "link to itself": link_to_itself} for name, kinds in CORRUPT.items()}
START = {"event": "start", "time": 0.0, "step": 0, "steps_lost": 0, "host": "", "job": None}
TOLERATED = {
    "attempts.jsonl": {
        "emptied": content(""),
        "zero-filled": zero_filled,
        "Latin-1": latin1,
        "types": content(json.dumps(START | {"time": "now"}) + "\n"),
        "infinite time": content(json.dumps(START | {"time": float("inf")}) + "\n"),
        "environment": content(json.dumps(START | {"environment": {"sources": 1, "torch": ["2"]}}) + "\n"),
        "list": content("[]\n[[\n1\n"),
    },
    "sweep.json": {"deleted": delete},
}
CORRUPT_LEDGER = {
    "emptied": content(""),
    "folder": folder,
    "pipe": pipe,
    "link to itself": link_to_itself,
    "cut": half,
    "zero-filled": zero_filled,
    "Latin-1": latin1,
    "null": content("null"),
    "no runs": content("{}"),
    "number": content("5"),
    "list": content("[]"),
    "runs are a list": changed(runs=["seed=0"]),
    "run is text": changed(runs={"seed=0": "done"}),
    "types of a run": changed(runs={"seed=0": {"overrides": None, "attempts": "1"}}),
    "name of a run": changed(runs={"../x": {}}),
    "submission without task": changed(runs={"seed=0": {"submission": "001"}}),
    "submission": changed(submissions={"001": None}),
    "number of a submission": changed(submissions={"first": {"job": None, "runs": [], "time": 0}}),
    "launcher": changed(local={"host": "a"}),
    "comparison": changed(comparison={"looks": 3}),
    "key of the comparison": changed(comparison={"base": "a"}),
}


def cases(kinds: dict[str, dict[str, Damage]]) -> list[object]:
    return [
        pytest.param(name, damage, id=f"{name}-{kind}")
        for name, named in kinds.items()
        for kind, damage in named.items()
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three finished runs."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(root)
        for run in create_sweep(range(3)):
            attempts.record_start(run.folder, 0, 0, {"sources": "1"})
            finish(run.folder)
            attempts.record_end(run.folder, "done")
    return root


@pytest.fixture
def sweep(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("runs/x")


def call(command: str, sweep: Path) -> int:
    if command == "run":
        return int(attnzoo_run.main(["x.yaml"]))
    return attnzoo_main.main([command, str(sweep)])


def files(folder: Path) -> dict[Path, bytes]:
    ours = ("config.yaml", "metrics.jsonl", "status.json", "attempts.jsonl")
    return {path: path.read_bytes() for path in folder.glob("*/*") if path.name in ours and path.is_file()}


@pytest.mark.parametrize(("name", "damage"), cases(CORRUPT))
def test_corrupt_run_is_named_and_the_others_count(
    sweep: Path, capfd: pytest.CaptureFixture[str], name: str, damage: Damage
) -> None:
    damage(sweep / "seed=0" / name)
    before = files(sweep)
    codes, outputs = [], []
    for command in COMMANDS:
        codes.append(call(command, sweep))
        outputs.append(capfd.readouterr())
    run, status, comparison, cancel = outputs
    assert codes == [ExitCode.FAILED, ExitCode.FAILED, ExitCode.FAILED, ExitCode.OK]
    (line,) = run.err.splitlines()
    assert line.startswith(f"corrupt: {sweep / 'seed=0' / name}:")
    assert "delete" in line
    assert "2 of 3 runs are already done" in run.out
    assert "2 done, 1 corrupt" in " ".join(status.out.split())
    assert " ".join(comparison.out.split()).count(f"Left out: {sweep / 'seed=0' / name}:") == 1
    assert cancel.out == "cancelled: 0 of 3 runs (0 SLURM jobs, 0 local)\n"
    assert files(sweep) == before
    assert len(list(sweep.glob("seed=*"))) == 3
    assert compare([sweep]).variants[0].seeds == (1, 2)


@pytest.mark.parametrize(("name", "damage"), cases(TOLERATED))
def test_finished_runs_stay_finished(sweep: Path, capfd: pytest.CaptureFixture[str], name: str, damage: Damage) -> None:
    """The ledger is recreated, the attempts are not needed."""
    damage(sweep / name if name == "sweep.json" else sweep / "seed=0" / name)
    assert call("run", sweep) == ExitCode.OK
    out, err = capfd.readouterr()
    assert "3 of 3 runs are already done" in out
    assert "skipped" not in out
    assert "starting" not in out
    assert err == ""
    for command in COMMANDS[1:]:
        assert call(command, sweep) == ExitCode.OK
    assert "3 done" in capfd.readouterr().out
    ledger = json.loads((sweep / "sweep.json").read_text())
    assert {name: entry["attempts"] for name, entry in ledger["runs"].items()} == (
        dict.fromkeys(("seed=0", "seed=1", "seed=2"), 1 if name == "sweep.json" else 0)
    )


@pytest.mark.parametrize("kind", CORRUPT_LEDGER)
def test_corrupt_ledger_is_rebuilt(sweep: Path, capfd: pytest.CaptureFixture[str], kind: str) -> None:
    """It is said once, and nothing is trained again."""
    ledger = sweep / "sweep.json"
    CORRUPT_LEDGER[kind](ledger)
    before = files(sweep)
    for command in ("status", "compare", "run", "cancel"):
        assert call(command, sweep) == ExitCode.OK
    out, err = capfd.readouterr()
    (line,) = err.splitlines()
    assert line.startswith(f"{ledger}: ")
    assert "rebuilt from the runs and their jobs" in line
    assert "3 done" in out
    assert "3 of 3 runs are already done" in out
    assert files(sweep) == before
    assert compare([sweep]).variants[0].seeds == (0, 1, 2)


def test_corrupt_config_without_a_ledger_is_not_trained_again(sweep: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (sweep / "sweep.json").unlink()
    zeros_in_the_middle(sweep / "seed=0" / "config.yaml")
    assert call("run", sweep) == ExitCode.FAILED
    assert "2 of 3 runs are already done" in capfd.readouterr().out
    assert len(list(sweep.glob("seed=*"))) == 3


def test_config_changed_on_purpose_is_kept_without_its_hash(sweep: Path) -> None:
    config = sweep / "seed=0" / "config.yaml"
    replaced("description: ''", "description: mine")(config)
    run = RunFolder(sweep / "seed=0")
    assert "delete its second line" in str(run.corruption())
    first, _, *others = config.read_text().splitlines(keepends=True)
    config.write_text("".join([first, *others]))
    assert run.corruption() is None
    assert call("run", sweep) == ExitCode.OK


@pytest.mark.parametrize("lines", [1, 2, 3])
def test_configs_of_earlier_versions_can_be_read(sweep: Path, lines: int) -> None:
    """Without the hash, and without the marks of start and end."""
    config = sweep / "seed=0" / "config.yaml"
    old = config.read_text().splitlines(keepends=True)
    config.write_text("".join({1: [old[0], *old[2:]], 2: old[2:], 3: old[2:-1]}[lines]))
    for command in COMMANDS:
        assert call(command, sweep) == ExitCode.OK
    assert compare([sweep]).variants[0].seeds == (0, 1, 2)
    zeros_in_the_middle(config)
    assert call("run", sweep) == ExitCode.FAILED
    assert call("status", sweep) == ExitCode.FAILED


def test_run_that_was_never_started_may_be_edited(sweep: Path) -> None:
    """Its config is written anew when it starts."""
    run = RunFolder(sweep / "seed=0")
    for path in (run.status, run.metrics, run.attempts):
        path.unlink()
    replaced("\nretries: ", "\nretries: 1")(run.config)
    assert run.corruption() is None
    experiment = Experiment(run.config)
    folder = SweepFolder(sweep)
    (spec,) = folder.assign(check_runs(experiment, expand(experiment)), name="seed=0")
    assert spec.folder.path == sweep / "seed=0"
    folder.create([spec], "x.yaml")
    run.write_status(state="running")
    assert run.corruption() is None


@pytest.mark.slow
def test_run_without_its_last_evaluation_is_evaluated_again(sweep: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As the message says: by deleting its status."""
    shutil.rmtree(sweep / "seed=0")
    assert call("run", sweep) == ExitCode.OK
    run = RunFolder(sweep / "seed=0")
    rows = run.read_metrics()
    without_last_line(run.metrics)
    capfd.readouterr()
    assert call("run", sweep) == ExitCode.FAILED
    assert "delete status.json next to it to evaluate the run again" in capfd.readouterr().err
    run.status.unlink()
    assert call("run", sweep) == ExitCode.OK
    assert run.read_metrics() == rows
    assert "resuming from" in run.log.read_text()
