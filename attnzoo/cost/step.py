"""The calls that are measured: inference on one image and on a batch, and a training step."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo.cost.subject import Subject
from attnzoo.engine.optim import build_optimizer, clip_gradients
from attnzoo.engine.seeding import isolate_attention_draws
from attnzoo.models.detr.detector import Detector
from attnzoo.models.detr.losses import SetCriterion
from attnzoo.models.dry_run import unused_parameters
from attnzoo.models.inputs import random_inputs
from attnzoo.models.probe.model import QUERIES, ProbeModel

OBJECTS = 8  # per training image of a detector, fewer if it has fewer queries
LEARNING_RATE = 1e-9  # so that the weights, and with them the work, stay the same


class Calls:
    """A model with random weights on random images, and the calls that are measured."""

    def __init__(self, subject: Subject, device: torch.device):
        self.subject = subject
        model = subject.build()
        for name in unused_parameters(model, subject.size, subject.batch_size):
            model.get_parameter(name).requires_grad_(False)
        self.model = model.to(device)
        if subject.train.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        isolate_attention_draws(self.model, device)
        generator = torch.Generator().manual_seed(0)
        self._inputs = random_inputs(self.model, subject.batch_size, subject.size, device, generator)
        self._loss = _make_loss(self.model, subject, device, generator)
        optimizer = replace(subject.train.optimizer, lr=LEARNING_RATE)
        self._optimizer = build_optimizer(self.model, optimizer)

    def infer_one(self) -> object:
        """Inference on one image."""
        return self._infer(*(tensor[:1] for tensor in self._inputs))

    def infer_batch(self) -> object:
        """Inference on a batch of the size in training."""
        return self._infer(*self._inputs)

    def train_step(self) -> None:
        """Forward pass, loss, backward pass and optimiser step on one batch; starts and ends without gradients."""
        self._set_mode(training=True)
        self._loss(self._forward(*self._inputs)).backward()
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        clip_gradients(parameters, self.subject.train.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _infer(self, *inputs: Tensor) -> object:
        self._set_mode(training=False)
        with torch.no_grad():
            return self._forward(*inputs)

    def _set_mode(self, training: bool) -> None:
        if self.model.training != training:  # walking over all modules would take a part of a small model's time
            self.model.train(training)

    def _forward(self, *inputs: Tensor) -> Any:
        with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=self.subject.train.precision == "bf16"):
            return self.model(*inputs)


def _make_loss(
    model: nn.Module, subject: Subject, device: torch.device, generator: torch.Generator
) -> Callable[[Any], Tensor]:
    """The loss of a model's output for random targets."""
    if isinstance(model, Detector):
        criterion = SetCriterion(model.config.loss, model.num_classes, select=model.config.head.select)
        objects = min(OBJECTS, model.config.queries)
        targets = [
            {
                "labels": torch.randint(model.num_classes, (objects,), generator=generator).to(device),
                "boxes": (0.2 + 0.6 * torch.rand(objects, 4, generator=generator)).to(device),
            }
            for _ in range(subject.batch_size)
        ]
        return lambda output: criterion(output, targets).total
    shape = (subject.batch_size, QUERIES) if isinstance(model, ProbeModel) else (subject.batch_size,)
    labels = torch.randint(subject.num_classes, shape, generator=generator).flatten().to(device)
    return lambda output: F.cross_entropy(output.float().flatten(0, -2), labels)
