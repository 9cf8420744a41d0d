"""The local launcher: its command, and the signals it forwards."""

import signal
import subprocess
import sys

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
