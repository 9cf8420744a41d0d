"""From a config to its task."""

from attnzoo.config.experiment import ClassificationExperiment, DetectionExperiment, ExperimentConfig
from attnzoo.engine.classification import ClassificationTask
from attnzoo.engine.detection import DetectionTask
from attnzoo.engine.distributed import DistContext


def build_task(config: ExperimentConfig, ctx: DistContext) -> DetectionTask | ClassificationTask:
    """The task that `config` describes, with its data and model. Raises UserError for what cannot be built."""
    if isinstance(config, ClassificationExperiment):
        return ClassificationTask(config.model, config.data, config.seed, ctx)
    assert isinstance(config, DetectionExperiment)
    return DetectionTask(config.model, config.data, config.seed, ctx, per_class=config.per_class)
