"""Train one run with several processes on this machine: `python -m attnzoo.worker.launch PROCESSES RUN_DIR`.

Runs torchrun, and exits with the code of the worker that failed: 128 + signal if it was killed.
"""

import os
import signal
import socket
import sys
import threading
from typing import Any

from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler
from torch.distributed.run import main as torchrun

from attnzoo.errors import ExitCode


def main(processes: int, run_dir: str) -> int:
    """Start the workers and wait for them; returns the exit code."""
    signal.signal(signal.SIGINT, lambda signum, frame: sys.exit(128 + signum))  # until torchrun has handlers
    threading.Thread(target=_unblock_sigint, daemon=True).start()
    try:
        store = _local_store()
        # the workers' store, which torchrun has listen on all interfaces too
        handler: Any = DynamicRendezvousHandler
        handler._create_tcp_store_server = lambda *args: _local_store()
        for backend in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{backend}_SOCKET_IFNAME", "lo")
        rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint={store.host}:{store.port}", "--rdzv-conf=is_host=0"]
        address = ["--nnodes=1", f"--rdzv-id={store.port}", f"--local-addr={store.host}"]
        torchrun([*rendezvous, *address, f"--nproc-per-node={processes}", "-m", "attnzoo.worker", run_dir])
    except SignalException as exc:
        return 128 + exc.sigval
    except ChildFailedError as exc:
        codes = [failure.exitcode for failure in exc.failures.values()]
        killed = [code for code in codes if code < 0]
        return 128 - killed[0] if killed else min(codes)  # prefer FAILED (cause) to PEER_LOST (consequence)
    return ExitCode.OK


def _local_store() -> TCPStore:
    """A store on the loopback interface alone; that of torchrun would listen on all, without a password."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    return TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        multi_tenant=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def _unblock_sigint() -> None:
    """Unblock SIGINT in this thread alone: the main thread keeps it blocked, and the workers inherit that."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
