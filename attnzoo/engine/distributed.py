"""torch.distributed with one API for a single process, torchrun and srun."""

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

TIMEOUT = timedelta(minutes=10)  # of a collective: the other ranks wait while rank 0 runs the COCO evaluation
# Error messages of Gloo and NCCL when a peer has exited.
PEER_LOST_PATTERN = re.compile(
    r"closed by peer|reset by peer|broken pipe|socket closed|connection (was )?(closed|reset)|remote process exited"
    r"|timed out waiting|no data received|failed to (recv|read)|communicator was aborted",
    re.IGNORECASE,
)


class RendezvousError(UserError):
    """The processes of a run could not connect to each other."""


class DistEnv(NamedTuple):
    """Rank, world size and rendezvous of this process, as set by the launcher."""

    rank: int
    world_size: int
    local_rank: int
    init_method: str


@dataclass(frozen=True)
class DistContext:
    """Rank, world size and device of this process, and the collectives among the processes that train one run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any_rank(self, flag: bool) -> bool:
        """True on all ranks if `flag` is set on any. Does not synchronise the GPU."""
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
        """Block until all ranks arrive."""
        self.all_gather_object(None)

    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Broadcast tensors from rank 0, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def all_gather_object(self, value: Any) -> list[Any]:
        """The picklable values of all ranks, in rank order."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast_object(self, value: Any) -> Any:
        """The picklable value of rank 0."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


def pick_device(device: str, local_rank: int) -> torch.device:
    """The device of a process: cpu, cuda, or auto, which is cuda if available. Raises UserError without a GPU."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(f"device = {device}: no GPU for local rank {local_rank} ({count} visible)", key="device")
    return torch.device("cuda", local_rank)


def read_env() -> DistEnv:
    """Rank and world size from the variables of torchrun or srun; a single process without them.

    Under srun the rendezvous is MASTER_ADDR:MASTER_PORT, by default the first node of the step and a port hashed from
    job, step and restart count.
    """
    env = os.environ
    if "RANK" in env:
        return DistEnv(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0)), "env://")
    world_size = int(env.get("SLURM_STEP_NUM_TASKS", 1))
    if world_size == 1:
        return DistEnv(0, 1, 0, "")
    job_key = ".".join(env.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"))
    port = env.get("MASTER_PORT") or 20000 + zlib.crc32(job_key.encode()) % 20000
    host = env.get("MASTER_ADDR") or _first_node(env["SLURM_STEP_NODELIST"])
    return DistEnv(int(env["SLURM_PROCID"]), world_size, int(env["SLURM_LOCALID"]), f"tcp://{host}:{port}")


def _first_node(nodes: str) -> str:
    command = ["scontrol", "show", "hostnames", nodes]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout.split()[0]


def init(device: str) -> DistContext:
    """Initialise the process group that the environment describes; a single process needs none.

    May be called again: the group stays, since torchrun's processes cannot create a second one. CPU tensors use Gloo
    and GPU tensors NCCL, so flags and objects never synchronise the GPU. When a process dies its sockets close, and the
    next collective of the other ranks raises instead of hanging.

    Raises UserError if the device does not exist, RendezvousError if the peers do not connect.
    """
    rank, world_size, local_rank, init_method = read_env()
    torch_device = pick_device(device, local_rank)
    if torch_device.type == "cuda":
        torch.cuda.set_device(torch_device)
    if world_size > 1 and not dist.is_initialized():
        backend = "gloo" if torch_device.type == "cpu" else "cpu:gloo,cuda:nccl"
        try:
            dist.init_process_group(backend, init_method, rank=rank, world_size=world_size, timeout=TIMEOUT)
        except (RuntimeError, OSError) as error:
            raise RendezvousError(_rendezvous_message(rank, world_size, init_method, error)) from error
    return DistContext(rank, world_size, torch_device)


def _rendezvous_message(rank: int, world_size: int, init_method: str, error: Exception) -> str:
    address = init_method.removeprefix("tcp://")
    if init_method == "env://":
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    reason = str(error).splitlines()[0]
    return (
        f"rank {rank} of {world_size}: rendezvous at {address} failed within {TIMEOUT.total_seconds():g} s ({reason}); "
        "check that every node can reach that address, or set MASTER_ADDR and MASTER_PORT"
    )


def is_peer_lost(error: Exception) -> bool:
    """Whether a collective failed because a peer process exited; the cause is in that process."""
    return isinstance(error, RuntimeError) and PEER_LOST_PATTERN.search(str(error)) is not None


def shutdown() -> None:
    """Destroy the process group, if there is one. Not after an error: other ranks may be inside a collective."""
    if dist.is_initialized():
        dist.destroy_process_group()
