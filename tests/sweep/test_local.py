"""Signals to the local launcher."""

import signal
import subprocess
import sys

import pytest

LAUNCHER = """
import os, signal, subprocess, sys, time
from attnzoo.sweep import local

class Worker(subprocess.Popen):
    def interrupt(self):
        self.send_signal(signal.SIGINT)

if sys.argv[1] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
run = Worker(["sleep", "60"], start_new_session=True)
running = [local.RunProcess(None, run, time.time())]
with local.WorkerStarter() as starter, local._SignalForwarder(running, starter) as signals:
    print("ready", flush=True)
    sys.stdin.readline()
    print(signals.count, run.wait() if signals.count else None, flush=True)
run.kill()
"""


@pytest.mark.parametrize(("how", "printed"), [("terminal", f"1 {-signal.SIGINT}"), ("nohup", "0 None")])
def test_a_closed_terminal_stops_the_runs_unless_under_nohup(how, printed):
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, how], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "ready\n"
        launcher.send_signal(signal.SIGHUP)
        out, _ = launcher.communicate("\n", timeout=60)
    assert (launcher.returncode, out) == (0, f"{printed}\n")
