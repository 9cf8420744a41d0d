"""Processes that train a run on this machine: executed, or forked by a server that has imported everything once."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any, Protocol

from attnzoo.files import open_for_appending
from attnzoo.rundir import process
from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep.expand import RunSpec
from attnzoo.worker.forkserver import MAX_MESSAGE

WORKER_MODULE, LAUNCHER_MODULE = "attnzoo.worker", "attnzoo.worker.launch"
SERVER_MODULE = "attnzoo.worker.forkserver"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Worker(Protocol):
    """A process that trains a run, or torchrun with its processes. It leads a process group."""

    def poll(self) -> int | None:
        """The exit code or the negative signal; None while it runs."""

    def interrupt(self) -> None:
        """Send SIGINT to the worker, or to torchrun, which forwards it."""

    def kill(self) -> None:
        """Send SIGKILL to the process group."""


class WorkerStarter:
    """Starts workers. A context manager, at whose end the servers end.

    Runs of one process on the CPU are forked by a server, one for each number of threads. Others are executed: torchrun
    has processes of its own, and a process that was forked cannot use CUDA if its parent has looked for a GPU. So is a
    run whose server cannot be started.
    """

    def __init__(self) -> None:
        self._servers: dict[int, _ForkServer] = {}

    def __enter__(self) -> "WorkerStarter":
        return self

    def __exit__(self, *error: object) -> None:
        for server in self._servers.values():
            server.close()

    def prepare(self, run: RunSpec) -> None:
        """Start the server of a run, if it has one, and wait for its imports."""
        threads = run.config.threads
        if not self._forks(run):
            return
        if server := self._servers.get(threads):
            server.receive()
            if not server.ended:
                return
            server.close()
        server = self._servers[threads] = _ForkServer(_environment(threads))
        server.wait_until_ready()

    def start(self, run: RunSpec) -> Worker:
        """Start a worker after `prepare`."""
        if self._forks(run) and (forked := self._servers[run.config.threads].start(run.folder)):
            return forked
        return _Executed(run)

    def kill_servers(self) -> None:
        """End the wait of `prepare`."""
        for server in list(self._servers.values()):
            server.kill()

    def _forks(self, run: RunSpec) -> bool:
        return sys.platform == "linux" and run.config.processes == 1 and _is_on_cpu(run.config.device)


def command(run: RunFolder, processes: int) -> list[str]:
    """The command that trains a run: the worker, or torchrun with several."""
    module = [LAUNCHER_MODULE, str(processes)] if processes > 1 else [WORKER_MODULE]
    return [sys.executable, "-m", *module, str(run.path)]


@contextmanager
def open_crash_log(run: RunFolder) -> Iterator[IO[bytes] | None]:
    """The run's log, opened for appending; None, which inherits our stderr, if it cannot be written."""
    try:
        file = open_for_appending(run.log)
    except OSError as error:
        print(f"{run.log}: cannot be written ({error.strerror})", file=sys.stderr)
        yield None
    else:
        with file:
            yield file


class _Executed:
    """A worker, or torchrun, as a child of this process."""

    def __init__(self, run: RunSpec):
        # The worker writes log.txt itself; stderr goes there too, for crashes and torchrun's messages.
        with open_crash_log(run.folder) as stderr:
            self._popen = _start_session(
                command(run.folder, run.config.processes), _environment(run.config.threads), stderr=stderr
            )

    def poll(self) -> int | None:
        return self._popen.poll()

    def interrupt(self) -> None:
        self._popen.send_signal(signal.SIGINT)

    def kill(self) -> None:
        if self._popen.poll() is None:
            os.killpg(self._popen.pid, signal.SIGKILL)


class _Forked:
    """A worker that a server has forked."""

    def __init__(self, server: "_ForkServer", pid: int):
        self.returncode: int | None = None
        self._server = server
        self._process = process.identity(pid)

    def poll(self) -> int | None:
        self._server.receive()
        if self.returncode is None and self._server.ended and not process.is_running_here(self._process):
            self.returncode = -signal.SIGKILL  # unknown, as is what has ended the server
        return self.returncode

    # No receive() in these two: they are called by signal handlers, also in the middle of another receive().

    def interrupt(self) -> None:
        self._signal(os.kill, signal.SIGINT)

    def kill(self) -> None:
        self._signal(os.killpg, signal.SIGKILL)

    def _signal(self, send: Any, signum: int) -> None:
        if process.is_running_here(self._process):
            with suppress(ProcessLookupError):
                send(self._process["pid"], signum)


class _ForkServer:
    """A process of `attnzoo.worker.forkserver`."""

    def __init__(self, environment: Mapping[str, str]):
        self.ended = False
        self._ready = False
        self._started: list[_Forked] = []
        self._running: dict[int, _Forked] = {}
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            fd = theirs.fileno()
            self._popen = _start_session(
                [sys.executable, "-m", SERVER_MODULE, str(fd)], environment, stderr=subprocess.DEVNULL, pass_fds=[fd]
            )

    def wait_until_ready(self) -> None:
        """Wait until it has imported everything, or has ended."""
        while not (self._ready or self.ended):
            self.receive(wait=True)

    def start(self, run: RunFolder) -> _Forked | None:
        """Fork a worker; None if the server has ended."""
        try:
            self._connection.send(str(run.path).encode(errors="surrogateescape"))
        except OSError:
            self.ended = True
        while not (self._started or self.ended):
            self.receive(wait=True)
        return self._started.pop() if self._started else None

    def receive(self, wait: bool = False) -> None:
        """Take in the messages that have come; `wait` for the first."""
        while not self.ended:
            try:
                message = self._connection.recv(MAX_MESSAGE, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self.ended = True
                return
            self._take_in(json.loads(message))
            wait = False

    def _take_in(self, message: Mapping[str, Any]) -> None:
        if "ready" in message:
            self._ready = True
        elif "started" in message:
            worker = self._running[message["started"]] = _Forked(self, message["started"])
            self._started.append(worker)
        else:
            self._running.pop(message["ended"]).returncode = message["returncode"]

    def kill(self) -> None:
        self._popen.kill()

    def close(self) -> None:
        """End the server; workers that still train go on."""
        self._connection.close()
        self._popen.kill()
        self._popen.wait()


def _start_session(
    arguments: list[str], environment: Mapping[str, str], stderr: Any, pass_fds: Any = ()
) -> "subprocess.Popen[bytes]":
    """A process in a session of its own, so that Ctrl-C reaches it only through this process; with SIGINT blocked.

    The worker unblocks it when it can save, not during its imports.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        return subprocess.Popen(
            arguments,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _environment(threads: int) -> dict[str, str]:
    return os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))


def _is_on_cpu(device: str) -> bool:
    from attnzoo.engine.distributed import pick_device  # imports torch

    return device == "cpu" or (device == "auto" and pick_device(device, 0).type == "cpu")
