"""One process or several: the same calls for a plain start and for torchrun."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from attnzoo.errors import UserError

TIMEOUT = timedelta(minutes=10)  # longest wait for another rank: rank 0 summarises a whole evaluation alone


@dataclass(frozen=True)
class Ranks:
    """The place of a process among those that train one model, and the device it trains on."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; every rank gets the same answer. Costs no device synchronisation."""
        if self.world == 1:
            return flag
        value = torch.tensor([flag], dtype=torch.uint8)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value)

    def mean(self, value: Tensor) -> Tensor:
        """Elementwise mean over the ranks."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.world
        return value

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.gather(None)

    def align(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the values of rank 0, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable value, in rank order, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def share(self, value: Any) -> Any:
        """Rank 0's picklable value, on every rank."""
        if self.world == 1:
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


def join(device: str) -> Ranks:
    """Join the process group that the environment describes (torchrun, submitit), or stand alone.

    Joining again is free: torchrun's processes cannot leave a group and form another.
    Tensors on the CPU travel through gloo and tensors on a GPU through nccl, so flags and objects never wait for
    the GPU. A process that ends takes its sockets along: the other ranks' next exchange raises instead of waiting.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen = pick_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world > 1 and not dist.is_initialized():
        backend = "gloo" if chosen.type == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, rank=rank, world_size=world, timeout=TIMEOUT)
    return Ranks(rank, world, chosen)


def leave() -> None:
    """Leave the process group, if there is one. Not after an error: other ranks may be waiting in an exchange."""
    if dist.is_initialized():
        dist.destroy_process_group()
