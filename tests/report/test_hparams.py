"""TensorBoard's HParams of a sweep."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from attnzoo.report import hparams


def metrics_of(folder: Path) -> list[str]:
    """The metrics that the sweep declares; TensorBoard hides runs that lack one of them."""
    (file,) = folder.glob("*.hparams")
    values = [value for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    (content,) = [HParamsPluginData.FromString(value.metadata.plugin_data.content) for value in values]
    return [info.name.tag for info in content.experiment.metric_infos]


@pytest.mark.parametrize(
    ("task", "expected", "other"), [("detection", "val/AP", "val/top1"), ("classification", "val/top1", "val/AP")]
)
def test_metrics_are_those_of_the_task(task, expected, other, tmp_path):
    hparams.write_hparams(tmp_path, {"a": {"points": 1}}, {"a": "points=1"}, [task])
    assert expected in metrics_of(tmp_path)
    assert other not in metrics_of(tmp_path)
    assert not [tag for tag in metrics_of(tmp_path) if tag.startswith(("speed/", "cost/"))]
