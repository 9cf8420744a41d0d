"""The processes of local runs: forked by a server that has imported everything, or executed."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.engine import TINY, results, tiny_run

from attnzoo.config.load import load_saved
from attnzoo.errors import ExitCode
from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep import local
from attnzoo.sweep.expand import RunSpec
from attnzoo.sweep.outcome import ExitKind, Outcome
from attnzoo.sweep.workers import WorkerStarter, command

PLUGIN = Path(__file__).parents[1] / "support" / "worker_plugin.py"


def test_worker_command_is_valid(tmp_path):
    """Without a config it fails with an error message."""
    ended = subprocess.run(command(RunFolder(tmp_path), 1), capture_output=True, text=True, timeout=120)
    assert ended.returncode == ExitCode.USER_ERROR
    assert "config.yaml" in ended.stderr


def spec(folder: RunFolder) -> RunSpec:
    """What the launcher needs to know of a run."""
    return SimpleNamespace(folder=folder, config=load_saved(folder.config))


class Recorder:
    """Callbacks that keep the outcomes of all attempts in their order."""

    def __init__(self):
        self.outcomes: list[tuple[str, Outcome]] = []

    def start(self, run: RunSpec) -> None:
        pass

    def update(self, running: list[RunSpec]) -> None:
        pass

    def finish(self, run: RunSpec, outcome: Outcome, will_retry: bool) -> None:
        self.outcomes.append((run.folder.path.name, outcome))


def leaving(folder: Path, leave: str, **changes: str) -> RunFolder:
    """A tiny run of two steps whose attention ends in this way."""
    attention = f"{{name: leaving, leave: {leave}}}"
    options = {"plugins": f"[{PLUGIN}]", "model__encoder__attention": attention, "train__steps": "2", "retries": "0"}
    return tiny_run(folder / leave, **options | changes)


@pytest.mark.slow
def test_a_run_after_others_equals_that_of_a_new_process(uninterrupted, tmp_path, monkeypatch):
    """After runs that failed, crashed, were killed or ran out of memory, and left any state behind."""
    monkeypatch.setenv("ATTNZOO_TEST_LEFT", str(tmp_path / "left.txt"))
    ends = {
        "state": "after leaving state behind",
        "sigkill": "1 machine failure",
        "abort": "exit code -6",
        "exit": "exit code 7",
        "memory": "",
    }
    runs = [leaving(tmp_path, leave) for leave in ends] + [tiny_run(tmp_path / "last")]
    recorder = Recorder()
    result = local.train([spec(run) for run in runs], 1, recorder)
    assert [name for name, _ in recorder.outcomes] == [*ends, "last"]
    for name, reason in ends.items():
        assert result.outcomes[name].kind is ExitKind.FAILED, name
        assert reason in result.outcomes[name].reason
        assert RunFolder(tmp_path / name).read_status()["state"] == "failed"
    assert result.outcomes["last"].kind is ExitKind.DONE
    last = runs[-1]
    assert results(last) == results(uninterrupted)
    pids = [run.read_status()["pid"] for run in runs]
    assert len({*pids, os.getpid()}) == len(runs) + 1
    assert "after leaving state behind" in runs[0].log.read_text()
    assert "after leaving" not in last.log.read_text()
    recorded, expected = (json.loads(run.environment.read_text()) for run in (last, uninterrupted))
    assert recorded["command"][1:] == [str(last.path)]
    assert Path(recorded["command"][0]).parts[-2:] == ("worker", "__main__.py")
    assert (recorded["threads"], recorded["packages"]) == (expected["threads"], expected["packages"])


def children(pid: int) -> set[int]:
    """The processes whose parent is `pid`."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
            found |= {int(stat.parent.name)} if int(parent) == pid and state != "Z" else set()
    return found


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_a_server_that_is_killed_is_started_anew(tmp_path):
    """The run that trains meanwhile goes on; how it ends is read from its files."""
    first, second = (spec(tiny_run(tmp_path / name, train__steps="40")) for name in ("first", "second"))
    with WorkerStarter() as starter:
        before = children(os.getpid())
        starter.prepare(first)
        (server,) = children(os.getpid()) - before
        worker = starter.start(first)
        wait_for(lambda: first.folder.read_status().get("step"))
        assert children(server) == {first.folder.read_status()["pid"]}
        os.kill(server, signal.SIGKILL)
        wait_for(lambda: server not in children(os.getpid()))
        assert worker.poll() is None
        starter.prepare(second)
        (anew,) = children(os.getpid()) - before - {server}
        other = starter.start(second)
        wait_for(lambda: second.folder.read_status().get("pid"))
        assert children(anew) == {second.folder.read_status()["pid"]}
        wait_for(lambda: worker.poll() is not None and other.poll() is not None)
        assert worker.poll() == -signal.SIGKILL
        assert other.poll() == 0
    assert [run.folder.read_status()["state"] for run in (first, second)] == ["done", "done"]
    assert results(first.folder) == results(second.folder)
    assert children(os.getpid()) == before


def test_runs_are_executed_if_no_server_starts(tmp_path, monkeypatch):
    """Their logs have the reason."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torchvision.py").write_text("raise ImportError('broken installation')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'broken'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    run = tiny_run(tmp_path / "run")
    result = local.train([spec(run)], 1, Recorder())
    assert result.outcomes["run"] == (ExitKind.FAILED, "exit code 1: ImportError: broken installation")
    assert "Traceback" in run.log.read_text()


def test_interrupts_and_kills_reach_a_forked_worker(tmp_path):
    runs = [spec(tiny_run(tmp_path / name, train__steps="100000")) for name in ("interrupted", "killed")]
    with WorkerStarter() as starter:
        for run in runs:
            starter.prepare(run)
        first, second = (starter.start(run) for run in runs)
        wait_for(lambda: all(run.folder.read_status().get("step") for run in runs))
        first.interrupt()
        second.kill()
        wait_for(lambda: first.poll() is not None and second.poll() is not None)
        assert first.poll() == ExitCode.INTERRUPTED
        assert second.poll() == -signal.SIGKILL
        first.interrupt()
        first.kill()
    status = runs[0].folder.read_status()
    assert (status["state"], status["signal"]) == ("interrupted", "SIGINT")


@pytest.mark.slow
def test_threads_have_servers_of_their_own_and_give_the_same_results(tmp_path):
    """Two threads, one thread, and torchrun in one sweep: as executed processes."""
    changes = {"two": {"threads": "2"}, "one": {}, "torchrun": {"processes": "2", "train__steps": "3"}}
    forked, executed = (
        [tiny_run(tmp_path / kind / name, TINY, **options) for name, options in changes.items()]
        for kind in ("forked", "executed")
    )
    result = local.train([spec(run) for run in forked], 2, Recorder())
    assert {outcome.kind for outcome in result.outcomes.values()} == {ExitKind.DONE}
    for run, options in zip(executed, changes.values(), strict=True):
        threads = options.get("threads", "1")
        variables = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        done = subprocess.run(command(run, int(options.get("processes", 1))), env=variables, capture_output=True)
        assert done.returncode == 0
    assert [results(run) for run in forked] == [results(run) for run in executed]
    assert json.loads(forked[0].environment.read_text())["threads"] == 2
    assert sys.platform != "linux" or "forkserver" not in forked[2].log.read_text()
