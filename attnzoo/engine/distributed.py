"""One process or several: the same calls for a plain start, for torchrun and for SLURM's srun."""

import os
import re
import subprocess
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from attnzoo.errors import UserError

TIMEOUT = timedelta(minutes=10)  # longest wait for another rank: rank 0 summarises a whole evaluation alone
# What gloo and nccl say when the process at the other end is gone.
PEER_LOST_PATTERN = re.compile(
    r"closed by peer|reset by peer|broken pipe|socket closed|connection (was )?(closed|reset)|remote process exited"
    r"|timed out waiting|no data received|failed to (recv|read)|communicator was aborted",
    re.IGNORECASE,
)


class RendezvousError(UserError):
    """The processes of a run did not find each other."""


class DistEnv(NamedTuple):
    """Where a process stands among those of its run. `init_method` is where they meet."""

    rank: int
    world_size: int
    local_rank: int
    init_method: str


@dataclass(frozen=True)
class DistContext:
    """The place of a process among those that train one model, and the device it trains on."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; every rank gets the same answer. Costs no device synchronisation."""
        if self.world_size == 1:
            return flag
        value = torch.tensor([flag], dtype=torch.uint8)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value)

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        """Elementwise mean over the ranks."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.world_size
        return value

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.all_gather_object(None)

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the values of rank 0, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def all_gather_object(self, value: Any) -> list[Any]:
        """Every rank's picklable value, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's picklable value, on every rank."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


def pick_device(device: str, local_rank: int) -> torch.device:
    """The device of one process: `auto` takes a GPU where there is one."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(f"device = {device}: local process {local_rank} has no GPU of its own ({count} visible)")
    return torch.device("cuda", local_rank)


def read_env() -> DistEnv:
    """What torchrun's variables say, or those of srun, or that this process is alone.

    Under srun the processes meet at MASTER_ADDR, or the first node of the step, and MASTER_PORT, or a port that
    depends on the job and its restarts.
    """
    env = os.environ
    if "RANK" in env:
        return DistEnv(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0)), "env://")
    world = int(env.get("SLURM_STEP_NUM_TASKS", 1))
    if world == 1:
        return DistEnv(0, 1, 0, "")
    start = ".".join(env.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"))
    port = env.get("MASTER_PORT") or 20000 + zlib.crc32(start.encode()) % 20000
    host = env.get("MASTER_ADDR") or _first_node(env["SLURM_STEP_NODELIST"])
    return DistEnv(int(env["SLURM_PROCID"]), world, int(env["SLURM_LOCALID"]), f"tcp://{host}:{port}")


def _first_node(nodes: str) -> str:
    command = ["scontrol", "show", "hostnames", nodes]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]


def init(device: str) -> DistContext:
    """Join the process group that the environment describes (torchrun, srun), or stand alone.

    Joining again is free: torchrun's processes cannot leave a group and form another.
    Tensors on the CPU travel through gloo and tensors on a GPU through nccl, so flags and objects never wait for
    the GPU. A process that ends takes its sockets along: the other ranks' next exchange raises instead of waiting.
    Raises RendezvousError if the others do not come.
    """
    rank, world, local_rank, init_method = read_env()
    chosen = pick_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world > 1 and not dist.is_initialized():
        backend = "gloo" if chosen.type == "cpu" else "cpu:gloo,cuda:nccl"
        try:
            dist.init_process_group(backend, init_method, rank=rank, world_size=world, timeout=TIMEOUT)
        except (RuntimeError, OSError) as error:
            raise RendezvousError(_rendezvous_message(rank, world, init_method, error)) from error
    return DistContext(rank, world, chosen)


def _rendezvous_message(rank: int, world: int, init_method: str, error: Exception) -> str:
    address = init_method.removeprefix("tcp://")
    if init_method == "env://":
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    reason = str(error).splitlines()[0]
    return (
        f"process {rank} of {world} could not join the others at {address} within {TIMEOUT.total_seconds():g} s "
        f"({reason}); check that every node can reach that address, or set MASTER_ADDR and MASTER_PORT"
    )


def is_peer_lost(error: Exception) -> bool:
    """Whether an exchange failed because another process is gone, which is that process's failure."""
    return isinstance(error, RuntimeError) and PEER_LOST_PATTERN.search(str(error)) is not None


def shutdown() -> None:
    """Leave the process group, if there is one. Not after an error: other ranks may be waiting in an exchange."""
    if dist.is_initialized():
        dist.destroy_process_group()
