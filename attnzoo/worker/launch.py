"""Train one run with several processes on this machine: `python -m attnzoo.worker.launch PROCESSES RUN_DIR`.

Runs torchrun, and exits with the code of the worker that failed: 128 + signal if it was killed.
"""

import signal
import sys
import threading

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from attnzoo.errors import ExitCode


def main(processes: int, run_dir: str) -> int:
    """Start the workers and wait for them; returns the exit code."""
    signal.signal(signal.SIGINT, lambda signum, frame: sys.exit(128 + signum))  # until torchrun has handlers
    threading.Thread(target=_unblock_sigint, daemon=True).start()
    try:
        torchrun(["--standalone", f"--nproc-per-node={processes}", "-m", "attnzoo.worker", run_dir])
    except SignalException as exc:
        return 128 + exc.sigval
    except ChildFailedError as exc:
        codes = [failure.exitcode for failure in exc.failures.values()]
        killed = [code for code in codes if code < 0]
        return 128 - killed[0] if killed else min(codes)  # prefer FAILED (cause) to PEER_LOST (consequence)
    return ExitCode.OK


def _unblock_sigint() -> None:
    """Unblock SIGINT in this thread alone: the main thread keeps it blocked, and the workers inherit that."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
