"""Files of a sweep damaged at random: whatever is lost is said, nothing else changes, and no result is wrong."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from support.engine import results
from support.run_folder import EXPERIMENT

from attnzoo import __main__ as attnzoo_main
from attnzoo import run as attnzoo_run
from attnzoo.errors import ExitCode
from attnzoo.report.compare import compare
from attnzoo.rundir import ledger
from attnzoo.rundir.folder import RunFolder

SEEDS = (0, 1)
STEPS = 8
KINDS = ("emptied", "cut", "bit flipped", "deleted", "unreadable")
PLUGIN = Path(__file__).parents[1] / "support" / "slurm_plugin.py"
SLOW = (f"plugins=[{PLUGIN}]", "model.encoder.attention.name=slow")  # with the same results
UNTOUCHED = ("config.yaml", "metrics.jsonl", "status.json", "attempts.jsonl")


def damage(path: Path, kind: str, rng: random.Random) -> None:
    content = path.read_bytes()
    if kind == "emptied":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(content[: rng.randrange(len(content))])
    elif kind == "bit flipped":
        at = rng.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :])
    elif kind == "deleted":
        path.unlink()
    elif os.geteuid():
        path.chmod(0)
    else:  # root may read everything
        path.unlink()
        path.mkdir()


def choose(sweep: Path, rng: random.Random) -> Path:
    """A file of the sweep, or of its first run; small files as often as checkpoints."""
    files = [*sweep.glob("*"), *(sweep / "seed=0").rglob("*")]
    return rng.choice(sorted(path for path in files if path.is_file() and path.stat().st_size))


def write_experiment(root: Path) -> None:
    (root / "x.yaml").write_text(
        EXPERIMENT.replace("steps: 2", f"steps: {STEPS}, checkpoint_every: 2")
        + f"sweep: {{seeds: {list(SEEDS)}, costs: false}}\njobs: 2\n"
    )


def started(root: Path) -> subprocess.Popen[bytes]:
    write_experiment(root)
    command = [sys.executable, "-m", "attnzoo.run", "x.yaml"]
    return subprocess.Popen(command, cwd=root, start_new_session=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    assert started(root).wait(180) == 0
    return root


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose processes were killed after each run had saved."""
    root = tmp_path_factory.mktemp("interrupted")
    launcher = started(root)
    runs = [RunFolder(root / "runs" / "x" / f"seed={seed}") for seed in SEEDS]
    while not all(run.last_step() >= 2 for run in runs):
        assert launcher.poll() is None
        time.sleep(0.05)
    pids = [RunFolder(run.path).read_status()["pid"] for run in runs]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()
    assert any(run.read_status()["state"] == "running" for run in runs)
    return root


@pytest.fixture
def capture(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_reported", set())
    monkeypatch.setenv("ATTNZOO_TEST_SLEEP", "0.1")  # a step of SLOW
    monkeypatch.chdir(tmp_path)


def call(command: str, *options: str) -> int:
    if command == "run":
        return int(attnzoo_run.main(["x.yaml", *options]))
    return attnzoo_main.main([command, "runs/x"])


def copied(root: Path, copy: Path) -> Path:
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(root, copy)
    os.chdir(copy)
    ledger._reported.clear()
    return Path("runs/x")


def check_finished(root: Path, copy: Path, seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(seed)
    sweep = copied(root, copy)
    path, kind = choose(sweep, rng), rng.choice(KINDS)
    what = f"{seed}: {path} {kind}"
    truth = {run: final(sweep / f"seed={run}") for run in SEEDS}
    damage(path, kind, rng)
    others = {other: other.read_bytes() for other in (sweep / "seed=1").glob("*") if other.name in UNTOUCHED}
    capfd.readouterr()
    for command in ("status", "compare", "run", "cancel"):
        code = call(command)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err, what
        assert code in (ExitCode.OK, ExitCode.FAILED), f"{what}: {command}: {err}"
        if code == ExitCode.FAILED:
            assert "seed=0" in " ".join((out + err).split()), f"{what}: {command} does not name the run"
        if command == "compare":
            (variant,) = compare([sweep]).variants
            assert 1 in variant.seeds, what
            for run in variant.seeds:
                assert final(sweep / f"seed={run}") == truth[run], what
            named = code == ExitCode.FAILED or "seed 0 pending" in out
            assert len(variant.seeds) == 2 or named, f"{what}: left out without a word"
    assert {other: other.read_bytes() for other in others} == others, what


def final(run: Path) -> dict[str, float]:
    """The last values of the metrics of a run, but for times."""
    return {key: value for row in results(RunFolder(run)) for key, value in row.items()}


def check_resumed(root: Path, reference: Path, copy: Path, seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Runs of a killed sweep go on as if nothing had happened, or are named."""
    rng = random.Random(seed)
    sweep = copied(root, copy)
    path, kind = choose(sweep, rng), rng.choice(KINDS)
    what = f"{seed}: {path} {kind}"
    damage(path, kind, rng)
    capfd.readouterr()
    code = call("run")
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err, f"{what}: {err}"
    assert code in (ExitCode.OK, ExitCode.FAILED), f"{what}: {err}"
    runs = [1] if code == ExitCode.FAILED else SEEDS
    if code == ExitCode.FAILED:
        assert "seed=0" in " ".join((out + err).split()), f"{what}: the run is not named"
    for run in runs:
        expected = results(RunFolder(reference / "runs" / "x" / f"seed={run}"))
        assert results(RunFolder(sweep / f"seed={run}")) == expected, what


def damage_while_running(sweep: Path, rng: random.Random, ended: threading.Event) -> str:
    """Damage a file at a random step of the first run; returns what."""
    run, step = RunFolder(sweep / "seed=0"), rng.randrange(2, STEPS)
    while run.last_step() < step:
        assert not ended.wait(0.01)
    while True:
        path, kind = choose(sweep, rng), rng.choice(KINDS)
        with suppress(FileNotFoundError):  # a temporary file
            damage(path, kind, rng)
            return f"{path} {kind} after step {step}"


def check_running(reference: Path, copy: Path, seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Runs that train go on as if nothing had happened, or are named; so do they when they are started again."""
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    os.chdir(copy)
    ledger._reported.clear()
    write_experiment(copy)
    sweep = copy / "runs" / "x"
    capfd.readouterr()
    ended = threading.Event()
    with ThreadPoolExecutor() as pool:
        damaged = pool.submit(damage_while_running, sweep, random.Random(seed), ended)
        codes, outputs = [call("run", *SLOW)], [capfd.readouterr()]
        ended.set()
    what = f"{seed}: {damaged.result()}"
    truth = {run: final(reference / "runs" / "x" / f"seed={run}") for run in SEEDS}
    assert final(sweep / "seed=1") == truth[1], what
    for command in ("status", "compare", "run"):
        codes.append(call(command, *(SLOW if command == "run" else ())))
        outputs.append(capfd.readouterr())
    for code, (out, err) in zip(codes, outputs, strict=True):
        assert "Traceback" not in out + err, f"{what}: {err}"
        assert code in (ExitCode.OK, ExitCode.FAILED), f"{what}: {err}"
        assert code == ExitCode.OK or "seed=0" in " ".join((out + err).split()), f"{what}: the run is not named"
    (variant,) = compare([sweep]).variants
    assert 1 in variant.seeds, what
    for run in variant.seeds:
        assert final(sweep / f"seed={run}") == truth[run], what
    assert len(variant.seeds) == 2 or codes[-1] == ExitCode.FAILED, f"{what}: left out without a word"


@pytest.mark.slow
@pytest.mark.usefixtures("capture")
def test_damage_to_a_finished_sweep(finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for seed in range(25):
        check_finished(finished, tmp_path / "copy", seed, capfd)


@pytest.mark.slow
@pytest.mark.usefixtures("capture")
def test_damage_to_a_killed_sweep(
    finished: Path, interrupted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        check_resumed(interrupted, finished, tmp_path / "copy", seed, capfd)


@pytest.mark.slow
@pytest.mark.usefixtures("capture")
def test_damage_to_a_running_sweep(finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for seed in range(2):
        check_running(finished, tmp_path / "copy", seed, capfd)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("capture")
def test_300_damages(finished: Path, interrupted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for seed in range(25, 235):
        check_finished(finished, tmp_path / "copy", seed, capfd)
    for seed in range(3, 48):
        check_resumed(interrupted, finished, tmp_path / "copy", seed, capfd)
    for seed in range(2, 47):
        check_running(finished, tmp_path / "copy", seed, capfd)
