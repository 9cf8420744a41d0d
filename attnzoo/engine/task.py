"""The interface between the trainer and a task: a model with data, loss and evaluation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

Forward = Callable[..., Any]  # the model as the trainer wraps it: autocast, torch.compile, DDP


class StepLoss(NamedTuple):
    """The total loss (scalar with gradient) and its unweighted parts by name (scalars)."""

    total: Tensor
    parts: dict[str, Tensor]


class Observer(Protocol):
    """Looks at the model at each evaluation, on rank 0."""

    def __call__(self, model: nn.Module, forward: Forward, step: int, last: bool) -> Mapping[str, float]:
        """Further metrics of the evaluation after `step`, the `last` or not.

        `model` is in evaluation mode, not compiled, and whole; `forward` calls it. Neither may be changed.
        """


class Task(Protocol):
    """A model with its data, loss and evaluation."""

    @property
    def model(self) -> nn.Module: ...

    name: str  # in TASK_METRICS, which has its metrics
    batches_per_epoch: int  # of this rank
    global_batch_size: int  # images per batch, of all ranks together

    def batches(self, start: int, batches_per_epoch: int) -> Iterator[Any]:
        """Endless training batches of this rank, from number `start` on, in epochs of `batches_per_epoch`.

        Deterministic: batch n does not depend on `start`.
        """

    def normalizer(self, batches: Sequence[Any]) -> Any:
        """The normaliser of the losses of one optimiser step, over all its batches and ranks."""

    def loss(self, forward: Forward, batch: Any, normalizer: Any) -> StepLoss:
        """The loss of one batch. The gradient of a step is the mean over its batches and over ranks."""

    def evaluate(self, forward: Forward, heartbeat: Callable[[], None]) -> dict[str, float]:
        """Validation metrics, equal on all ranks. Draws no random numbers; calls `heartbeat` once per batch."""
