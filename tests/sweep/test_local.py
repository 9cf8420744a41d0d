"""The local launcher: its command, and the signals it forwards."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from attnzoo.errors import ExitCode
from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep.workers import command

LAUNCHER = """
import signal, subprocess, sys, time
from attnzoo.sweep import local
from attnzoo.sweep.workers import WorkerStarter

class Sleeper:
    def __init__(self):
        self.process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

if sys.argv[1] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
run = Sleeper()
running = [local.RunProcess(None, run, time.time())]
with WorkerStarter() as starter, local._SignalForwarder(running, starter) as signals:
    print("ready", flush=True)
    sys.stdin.readline()
    end = time.time() + (10 if sys.argv[1] == "terminal" else 0.5)  # another thread may get the signal first
    while not signals.count and time.time() < end:
        time.sleep(0.05)
    print(signals.count, run.process.wait() if signals.count else None, flush=True)
run.process.kill()
"""


def test_worker_command_is_valid(tmp_path):
    """Without a config it fails with an error message."""
    ended = subprocess.run(command(RunFolder(tmp_path), 1), capture_output=True, text=True, timeout=120)
    assert ended.returncode == ExitCode.USER_ERROR
    assert "config.yaml" in ended.stderr


@pytest.mark.parametrize(
    ("signum", "how", "printed"),
    [
        (signal.SIGHUP, "terminal", f"1 {-signal.SIGINT}"),
        (signal.SIGHUP, "nohup", "0 None"),
        *((signum, "terminal", f"1 {-signal.SIGINT}") for signum in (signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)),
    ],
)
def test_signals_that_end_a_program_stop_the_runs(signum, how, printed):
    """Of a closed terminal, of the quit key, and those of SLURM before a time limit; not SIGHUP under nohup."""
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, how], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "ready\n"
        launcher.send_signal(signum)
        out, _ = launcher.communicate("\n", timeout=60)
    assert (launcher.returncode, out) == (0, f"{printed}\n")


COSTS = """
import sys
from pathlib import Path
from attnzoo.sweep.costs import measure_costs

sys.executable = "./measure"
print("measured" if not measure_costs(Path("runs/x"), "a") else "ended", flush=True)
"""
MEASURE = """#!/bin/sh
sleep 60 &
echo $$ $!
wait
"""


@pytest.mark.parametrize(
    "signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2]
)
def test_signals_end_the_measurement_of_costs(tmp_path: Path, signum: signal.Signals) -> None:
    """It went on alone. What it has forked for the memory ends too."""
    (tmp_path / "measure").write_text(MEASURE)
    (tmp_path / "measure").chmod(0o755)
    command = [sys.executable, "-c", COSTS]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=tmp_path, **streams) as launcher:
        assert launcher.stdout is not None
        pids = [int(pid) for pid in launcher.stdout.readline().split()]
        assert len(pids) == 2
        launcher.send_signal(signum)
        out, err = launcher.communicate(timeout=60)
    command_line = "python -m attnzoo.cost runs/x --baseline a"
    assert (launcher.returncode, out) == (0, "ended\n")
    assert err == f"the costs were not measured ({signum.name}): {command_line}\n"
    assert not any(is_alive(pid) for pid in pids)


def is_alive(pid: int) -> bool:
    """Whether the process runs; not if it waits for its parent to take note of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
