"""What the training loop asks of a task: detection today, anything with a model, batches and a loss tomorrow."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

Forward = Callable[..., Any]  # the model as the loop runs it: autocast, compiled, synchronised over ranks


class StepLoss(NamedTuple):
    """What is minimised (a scalar with gradient) and its unweighted parts by name (scalars)."""

    total: Tensor
    parts: dict[str, Tensor]


class Task(Protocol):
    """A model with its data, loss and evaluation."""

    @property
    def model(self) -> nn.Module: ...

    best_metric: str  # the evaluated metric that selects the best checkpoint; higher is better
    batches_per_epoch: int  # of this rank
    global_batch_size: int  # of all ranks together

    def batches(self, start: int, batches_per_epoch: int) -> Iterator[Any]:
        """The rank's batches from number `start` of the run on, without end; an epoch gives its first `per_epoch`.

        Batch n is the same one wherever the iteration started.
        """

    def normalizer(self, batches: Sequence[Any]) -> Any:
        """What the losses of one optimiser step over these batches, on all ranks, are divided by."""

    def loss(self, forward: Forward, batch: Any, normalizer: Any) -> StepLoss:
        """The loss of one batch. The gradient of a step is the mean over its batches and over ranks."""

    def evaluate(self, forward: Forward, heartbeat: Callable[[], None]) -> dict[str, float]:
        """Validation metrics, the same on every rank; draws no random numbers and calls `beat` once per batch."""
