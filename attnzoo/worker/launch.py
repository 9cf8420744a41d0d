"""The processes of one run on this machine: `python -m attnzoo.worker.launch PROCESSES RUN_DIR`.

torchrun, but for its exit code: it is that of the process that failed, 128 and the signal where it was killed.
"""

import signal
import sys
import threading

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from attnzoo.errors import ExitCode


def main(processes: int, run_dir: str) -> int:
    """Run the worker in each process; returns the exit code."""
    signal.signal(signal.SIGINT, lambda number, frame: sys.exit(128 + number))  # until torchrun has handlers
    threading.Thread(target=_unblock_sigint, daemon=True).start()
    try:
        torchrun(["--standalone", f"--nproc-per-node={processes}", "-m", "attnzoo.worker", run_dir])
    except SignalException as exc:
        return 128 + exc.sigval
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        killed = [code for code in codes if code < 0]
        return 128 - killed[0] if killed else min(codes)  # prefer FAILED (the cause) to PEER_LOST (a consequence)
    return ExitCode.OK


def _unblock_sigint() -> None:
    """Take SIGINT where it is blocked, for the main thread to handle, whose processes inherit that it is blocked."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
