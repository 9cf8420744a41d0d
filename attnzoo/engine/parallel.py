"""How the ranks of a run share its model: each has all of it (DDP), or its part of every tensor (FSDP2)."""

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, cast

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from attnzoo.attention import Attention
from attnzoo.engine.distributed import DistContext

log = logging.getLogger(__name__)


class SingleDeviceStrategy:
    """One process: nothing is shared. Several: a subclass, which differs where it says so."""

    def __init__(self, model: nn.Module):
        self.train_model = model  # what a training step calls

    def gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a batch: ranks average the gradients of a step with its `last` batch."""
        return nullcontext()

    def unsharded_model(self, model: nn.Module) -> nn.Module:
        """`model`, or a copy as it is now, that each rank can call without the others. All ranks ask for it."""
        return model

    def full_state_dict(self, state: Any) -> Any:
        """`state`, nested dicts and lists, with tensors as of one process. All ranks call; the main one gets it."""
        return state

    def full_tensor(self, value: Tensor) -> Tensor:
        """A parameter, or what was computed from parameters or gradients, as one process has it. All ranks ask."""
        return value

    def load_model(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Give a model what `full_state_dict` made of its state."""
        model.load_state_dict(state)

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Give an optimiser what `full_state_dict` made of its state."""
        optimizer.load_state_dict(state)


class DDPStrategy(SingleDeviceStrategy):
    """All of the model on each rank (Li et al., PyTorch Distributed, VLDB 2020)."""

    def __init__(self, model: nn.Module, device: torch.device):
        self.train_model: DistributedDataParallel = DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None
        )

    def gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last else self.train_model.no_sync()


class FSDPStrategy(SingleDeviceStrategy):
    """Parameters, gradients and optimiser states in parts (Zhao et al., PyTorch FSDP, VLDB 2023).

    The block around each attention is gathered when it runs, what is left of the model while any of it does. For an
    evaluation, in which ranks differ in the number of their batches, each gathers a whole copy.
    """

    def __init__(self, model: nn.Module, ema: ModelEmaV3 | None, ctx: DistContext):
        self._ctx = ctx
        self._mesh = init_device_mesh(ctx.device.type, (ctx.world_size,))
        self._meta_model = _to_meta(model)
        self.train_model = model
        self._shard(model)
        parameters = cast(list[DTensor], list(model.parameters()))
        own = sum(parameter.to_local().numel() for parameter in parameters)
        log.info("sharded: %d of %d parameters in this process", own, sum(p.numel() for p in parameters))
        if ema is not None:
            self._shard(ema.module)
            ema.foreach = False  # takes no list in which some tensors are in parts and others, of buffers, are not

    def _shard(self, model: nn.Module) -> None:
        self._ctx.broadcast_tensors(tensor.detach() for tensor in model.state_dict().values())
        for module in reversed(list(model.modules())):
            if any(isinstance(child, Attention) for child in module.children()):
                fully_shard(module, mesh=self._mesh)
        fully_shard(model, mesh=self._mesh)

    @contextmanager
    def gradient_sync(self, last: bool) -> Iterator[None]:
        cast(FSDPModule, self.train_model).set_requires_gradient_sync(last)
        yield

    def full_tensor(self, value: Tensor) -> Tensor:
        return value.full_tensor() if isinstance(value, DTensor) else value

    def unsharded_model(self, model: nn.Module) -> nn.Module:
        copied = copy.deepcopy(self._meta_model)
        state = model.state_dict().items()
        copied.load_state_dict({name: self.full_tensor(value) for name, value in state}, assign=True)
        return copied.train(model.training)

    def full_state_dict(self, state: Any) -> Any:
        def put_together(tensor: DTensor) -> Tensor | None:
            found = tensor.full_tensor()
            return found.cpu() if self._ctx.is_main else None  # tensor by tensor: the whole may not fit a device

        return tree_map_only(DTensor, put_together, state)

    def load_model(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        own = model.state_dict()
        model.load_state_dict({name: _shard_like(value, own[name]) for name, value in state.items()})

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        parts = {
            number: {name: _shard_like(value, parameters[number]) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        optimizer.load_state_dict(state | {"state": parts})


def build_strategy(
    kind: Literal["ddp", "fsdp2"], model: nn.Module, ema: ModelEmaV3 | None, ctx: DistContext
) -> SingleDeviceStrategy:
    """What `train.parallel` chooses, for as many ranks as there are.

    Sharding replaces the parameters of `model` and of its `average`: an optimiser is built afterwards.
    """
    if ctx.world_size == 1:
        return SingleDeviceStrategy(model)
    return DDPStrategy(model, ctx.device) if kind == "ddp" else FSDPStrategy(model, ema, ctx)


def _to_meta(model: nn.Module) -> nn.Module:
    """A copy whose parameters have shapes but no values."""
    meta = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, meta)


def _shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Of a tensor that every rank has, this rank's part, shared as `like` is, unless it is of another shape."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
