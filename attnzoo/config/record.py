"""The config that a run's checkpoints hold: it decides whether config.yaml is still the one that trained them."""

import dataclasses
import json
from pathlib import Path

from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.load import differences, digest, find_digest, from_values
from attnzoo.config.options import with_added_options
from attnzoo.errors import UserError
from attnzoo.files import decode_json

MAX_DIFFERENCES = 3  # named in a message


def to_record(config: ExperimentConfig) -> str:
    """The whole config as JSON, for a checkpoint."""
    return json.dumps(dataclasses.asdict(config))


def check_record(record: str, checkpoint: Path, config: ExperimentConfig, source: Path) -> None:
    """Raise UserError, naming the keys, if the config in a checkpoint differs from that in `source`.

    Only in the seed and what else affects results, but not in how many processes train and how they share the model:
    checkpoints are unsharded. Options that have been added since have their defaults.
    """
    try:
        values = decode_json(record.encode())
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{checkpoint}: its config is not JSON")
    saved = from_values(values, f"{checkpoint}: config")
    train = dataclasses.replace(saved.train, parallel=config.train.parallel)
    saved = dataclasses.replace(saved, processes=config.processes, train=train)
    if saved.seed == config.seed and find_digest(saved, [digest(config)]) is not None:
        return
    changed = differences(with_added_options(saved), config)
    if not changed:
        return
    more = " and more" if len(changed) > MAX_DIFFERENCES else ""
    raise UserError(
        f"{source}: is not the config of {checkpoint.name}: {'; '.join(changed[:MAX_DIFFERENCES])}{more}; set that "
        "back and delete the second line of the file to use the checkpoint"
    )
