"""Measures the costs of the variants of a sweep after its last run."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from attnzoo.engine.interrupt import GracefulStop

POLL_SECONDS = 0.1


def measure_costs(sweep: Path, baseline: str) -> bool:
    """Measure them now that nothing of the sweep trains; a failure is only reported.

    Returns whether a signal that asks this program to end has ended the measurement.
    """
    arguments = ["-m", "attnzoo.cost", str(sweep), "--baseline", baseline]
    sys.stdout.flush()
    with GracefulStop() as stop:
        # a session of its own: signals reach it, and what it forks, through this process alone
        process = subprocess.Popen([sys.executable, *arguments], start_new_session=True)
        try:
            while process.poll() is None and not stop.requested:
                time.sleep(POLL_SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if stop.requested or process.returncode:
        reason = signal.Signals(stop.signum).name if stop.requested else f"exit code {process.returncode}"
        print(f"the costs were not measured ({reason}): {shlex.join(['python', *arguments])}", file=sys.stderr)
    return stop.requested
