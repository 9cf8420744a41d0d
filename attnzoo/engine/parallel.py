"""How the ranks of a run share its model: on one device, replicated (DDP) or sharded (FSDP2)."""

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
from attnzoo.models.dry_run import copy_with_meta_parameters

log = logging.getLogger(__name__)


class SingleDeviceStrategy:
    """One process. Base class of the strategies for several; all ranks must call the methods marked collective."""

    def __init__(self, model: nn.Module):
        self.train_model = model  # what a training step calls

    def gradient_sync(self, enabled: bool) -> AbstractContextManager[None]:
        """For forward and backward of a batch: gradients are averaged over the ranks only if `enabled`."""
        return nullcontext()

    def unsharded_model(self, model: nn.Module) -> nn.Module:
        """`model`, or a copy, that each rank can call independently of the others. Collective."""
        return model

    def full_state_dict(self, state: Any) -> Any:
        """`state`, nested dicts and lists, with its sharded tensors gathered on rank 0. Collective."""
        return state

    def full_tensor(self, value: Tensor) -> Tensor:
        """A parameter, a gradient or what was computed from them, unsharded. Collective."""
        return value

    def load_model(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Load what `full_state_dict` returned for the model's state."""
        model.load_state_dict(state)

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Load what `full_state_dict` returned for the optimiser's state."""
        optimizer.load_state_dict(state)


class DDPStrategy(SingleDeviceStrategy):
    """The whole model on each rank (Li et al., PyTorch Distributed, VLDB 2020)."""

    def __init__(self, model: nn.Module, device: torch.device):
        self.train_model: DistributedDataParallel = DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None
        )

    def gradient_sync(self, enabled: bool) -> AbstractContextManager[None]:
        return nullcontext() if enabled else self.train_model.no_sync()


class FSDPStrategy(SingleDeviceStrategy):
    """Shards parameters, gradients and optimiser states (Zhao et al., PyTorch FSDP, VLDB 2023).

    Each block that holds an attention is wrapped; the root wraps the rest. An evaluation runs on an unsharded copy,
    because the ranks have different numbers of batches.
    """

    def __init__(self, model: nn.Module, ema: ModelEmaV3 | None, ctx: DistContext):
        self._ctx = ctx
        self._mesh = init_device_mesh(ctx.device.type, (ctx.world_size,))
        self._meta_model = copy_with_meta_parameters(model)
        self.train_model = model
        self._shard(model)
        parameters = cast(list[DTensor], list(model.parameters()))
        local = sum(parameter.to_local().numel() for parameter in parameters)
        log.info("sharded: %d of %d parameters in this process", local, sum(p.numel() for p in parameters))
        if ema is not None:
            self._shard(ema.module)
            ema.foreach = False  # foreach ops cannot mix DTensors (parameters) and plain tensors (buffers)

    def _shard(self, model: nn.Module) -> None:
        self._ctx.broadcast_tensors(tensor.detach() for tensor in model.state_dict().values())
        for module in reversed(list(model.modules())):
            if any(isinstance(child, Attention) for child in module.children()):
                fully_shard(module, mesh=self._mesh)
        fully_shard(model, mesh=self._mesh)

    @contextmanager
    def gradient_sync(self, enabled: bool) -> Iterator[None]:
        cast(FSDPModule, self.train_model).set_requires_gradient_sync(enabled)
        yield

    def full_tensor(self, value: Tensor) -> Tensor:
        return value.full_tensor() if isinstance(value, DTensor) else value

    def unsharded_model(self, model: nn.Module) -> nn.Module:
        copied = copy.deepcopy(self._meta_model)
        state = model.state_dict().items()
        copied.load_state_dict({name: self.full_tensor(value) for name, value in state}, assign=True)
        return copied.train(model.training)

    def full_state_dict(self, state: Any) -> Any:
        def unshard(tensor: DTensor) -> Tensor | None:
            full = tensor.full_tensor()
            return full.cpu() if self._ctx.is_main else None  # one at a time: all may not fit on the device

        return tree_map_only(DTensor, unshard, state)

    def load_model(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        sharded = model.state_dict()
        model.load_state_dict({name: _shard_like(value, sharded[name]) for name, value in state.items()})

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        shards = {
            index: {name: _shard_like(value, parameters[index]) for name, value in values.items()}
            for index, values in state["state"].items()
        }
        optimizer.load_state_dict(state | {"state": shards})


def build_strategy(
    name: Literal["ddp", "fsdp2"], model: nn.Module, ema: ModelEmaV3 | None, ctx: DistContext
) -> SingleDeviceStrategy:
    """The strategy of `train.parallel`; a single process needs none.

    Sharding replaces the parameters of `model` and `ema`: build the optimiser afterwards.
    """
    if ctx.world_size == 1:
        return SingleDeviceStrategy(model)
    return DDPStrategy(model, ctx.device) if name == "ddp" else FSDPStrategy(model, ema, ctx)


def _shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Shard a replicated tensor as `like` is; unchanged if `like` is not sharded or has another shape."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
