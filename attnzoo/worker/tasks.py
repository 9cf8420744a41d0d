"""Builds the task of a config."""

from attnzoo.config.experiment import ClassificationExperiment, DetectionExperiment, ExperimentConfig, ProbeExperiment
from attnzoo.engine.classification import ClassificationTask
from attnzoo.engine.detection import DetectionTask
from attnzoo.engine.distributed import DistContext
from attnzoo.engine.probe import ProbeTask
from attnzoo.engine.seeding import stream_seed


def build_task(config: ExperimentConfig, ctx: DistContext) -> DetectionTask | ClassificationTask | ProbeTask:
    """The task of `config`, with its data and model. Raises UserError if they cannot be built."""
    order_seed = stream_seed(config.seed, config.train.stream)
    if isinstance(config, ClassificationExperiment):
        return ClassificationTask(config.model, config.data, config.seed, ctx, order_seed=order_seed)
    if isinstance(config, ProbeExperiment):
        return ProbeTask(config.model, config.data, config.seed, ctx, order_seed=order_seed)
    assert isinstance(config, DetectionExperiment)
    return DetectionTask(
        config.model,
        config.data,
        config.seed,
        ctx,
        order_seed=order_seed,
        per_class=config.per_class,
        max_detections=config.max_detections,
    )
