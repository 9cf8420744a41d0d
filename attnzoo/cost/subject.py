"""What is measured: a model, its images and how it is trained."""

from dataclasses import dataclass, field, replace

import torch
from torch import nn

from attnzoo import models
from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.load import digest
from attnzoo.data.build import dataset_info
from attnzoo.data.config import DataConfig
from attnzoo.engine.config import TrainConfig
from attnzoo.models.config import ModelConfig

Size = tuple[int, int]


@dataclass(frozen=True)
class Subject:
    """A model to be measured on images of `size` (h, w); `batch_size` is that of one process in training."""

    model: ModelConfig
    num_classes: int
    size: Size
    batch_size: int = DataConfig.batch_size
    train: TrainConfig = field(default_factory=TrainConfig)
    digest: str = ""

    def build(self) -> nn.Module:
        """The model with random weights. Raises UserError if it cannot be built."""
        torch.manual_seed(0)
        return models.build(self.model, self.num_classes)

    def at(self, size: Size) -> "Subject":
        """The same on images of another size."""
        return replace(self, size=size)

    @property
    def cost_key(self) -> str:
        """Equal for subjects that cost the same: they may differ in learning rates and the like."""
        train = self.train
        training = (train.precision, train.channels_last, train.clip is None, train.optimizer.name)
        return repr((self.model, self.num_classes, self.size, self.batch_size, training))


def subject_of(config: ExperimentConfig) -> Subject:
    """The model of a run, on images of its data set; reads no image. Raises UserError if the data set is not there."""
    data = dataset_info(config.data)
    num_classes = models.resolve_num_classes(config.model, data.num_classes)
    batch_size = max(config.data.batch_size // config.processes, 1)
    return Subject(config.model, num_classes, data.size, batch_size, config.train, digest(config))
