"""metrics.jsonl and its view in TensorBoard, read back with TensorBoard's own readers."""

import numpy as np
import pytest
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginEventAccumulator
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

from attnzoo.engine.metrics import MetricsLogger
from attnzoo.errors import UserError
from attnzoo.report import hparams
from attnzoo.rundir.folder import RunFolder


def scalars(path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_rows_and_events_agree_and_missing_values_are_omitted(tmp_path):
    run = RunFolder(tmp_path)
    metrics = MetricsLogger(run)
    metrics.write(0, {"cost/params": 12, "cost/ms": None})
    metrics.write(5, {"train/loss": 1.5, "train/lr": 0.25})
    metrics.write(5, {"val/AP": 0.5, "val/AP_S": float("nan")})
    metrics.close()
    assert run.read_metrics() == [
        {"step": 0, "cost/params": 12},
        {"step": 5, "train/loss": 1.5, "train/lr": 0.25},
        {"step": 5, "val/AP": 0.5},
    ]
    assert scalars(tmp_path) == {"train/loss": [(5, 1.5)], "train/lr": [(5, 0.25)], "val/AP": [(5, 0.5)]}
    (cost,) = EventAccumulator(str(tmp_path)).Reload().Tensors("cost")  # a single point is no curve
    assert b"| params | 12 |" in cost.tensor_proto.string_val[0]
    assert metrics.latest("train/lr") == 0.25
    assert metrics.latest("train/grad_norm") is None


@pytest.mark.parametrize("resume", [None, 0, 4, 5, 6])
def test_resuming_rewinds_to_the_checkpoint_without_duplicates(tmp_path, resume):
    run = RunFolder(tmp_path)

    def write(metrics: MetricsLogger, first: int) -> None:
        for step in range(first, 8):
            metrics.write(step, {"train/loss": float(step)})
            if step % 5 == 0:
                metrics.write(step, {"val/AP": float(step)})
        metrics.close()

    write(MetricsLogger(run), 0)
    running = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    rows = run.read_metrics()
    with run.metrics.open("a") as file:
        file.write('{"step": 8, "train/lo')  # the process died while writing
    before = [row for row in rows if row["step"] < (resume or 0) or (row["step"] == resume and "val/AP" not in row)]
    metrics = MetricsLogger(run, 0 if resume is None else len(before))
    if resume is not None and resume % 5 == 0:  # the trainer first repeats the evaluation that follows the checkpoint
        metrics.write(resume, {"val/AP": float(resume)})
    write(metrics, 0 if resume is None else resume + 1)
    assert run.read_metrics() == rows
    assert [event.step for event in running.Reload().Scalars("train/loss")] == list(range(8))
    assert scalars(tmp_path) == {
        "train/loss": [(step, step) for step in range(8)], "val/AP": [(0, 0), (5, 5)],
    }  # fmt: skip


def test_pictures_of_kept_evaluations_stay_and_others_do_not(tmp_path):
    run = RunFolder(tmp_path)
    run.config.write_text("a: 1\n")
    png = b"\x89PNG\r\n\x1a\n" + bytes(8) + (3).to_bytes(4, "big") + (2).to_bytes(4, "big")

    def evaluate(metrics: MetricsLogger, step: int, content: bytes) -> None:
        metrics.add_image("pictures/a", png + content, step)
        metrics.add_histogram("offsets/a", np.array([1.0, step]), step)
        metrics.write(step, {"val/AP": 0.5})

    metrics = MetricsLogger(run)
    for step in (2, 4, 6):
        evaluate(metrics, step, b"first")
    metrics.close()
    for resumed in (b"second", b"third"):  # from the checkpoint of step 4, before its evaluation
        metrics = MetricsLogger(run, 1)
        evaluate(metrics, 4, resumed)
        metrics.close()
        events = PluginEventAccumulator(str(tmp_path)).Reload()  # what TensorBoard reads files with
        images = {event.step: event.tensor_proto.string_val[2] for event in events.Tensors("pictures/a")}
        assert images == {2: png + b"first", 4: png + resumed}
        assert [event.step for event in events.Tensors("offsets/a")] == [2, 4]
        assert b"a: 1" in events.Tensors("config")[0].tensor_proto.string_val[0]


def test_error_names_the_lost_rows(tmp_path):
    metrics = MetricsLogger(RunFolder(tmp_path))
    for step in (1, 2):
        metrics.write(step, {"train/loss": 1.0})
    metrics.close()
    with pytest.raises(UserError, match=r"metrics\.jsonl: has 2 rows, but the checkpoint was saved after 3"):
        MetricsLogger(RunFolder(tmp_path), 3)
    assert len(RunFolder(tmp_path).read_metrics()) == 2


def link_to_itself(path):
    path.unlink()
    path.symlink_to(path.name)


def folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "digit changed": lambda path: path.write_bytes(path.read_bytes().replace(b"0.5", b"0.4")),
    "deleted": lambda path: path.unlink(),
    "folder": folder,
    "link to itself": link_to_itself,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_file_that_is_damaged_while_the_run_trains_is_written_again(tmp_path, caplog, damage):
    """A finished run lacked its first rows, and nobody was told."""
    run = RunFolder(tmp_path)
    metrics = MetricsLogger(run)
    for step in range(1, 4):
        metrics.write(step, {"train/loss": 0.5})
    assert metrics.sync() == 3
    assert not caplog.text
    damage(run.metrics)
    metrics.write(4, {"train/loss": 0.25})
    assert metrics.sync() == 4
    assert f"{run.metrics}: changed while the run trains; written again" in caplog.text
    metrics.write(5, {"train/loss": 0.125})
    metrics.close()
    assert run.read_metrics() == metrics.rows
    assert [row["step"] for row in metrics.rows] == [1, 2, 3, 4, 5]
    assert caplog.text.count("written again") == 1


def test_sweep_in_hparams(tmp_path):
    """Union of columns, values per run, seeds of a variant grouped, metrics from the runs, no further runs."""
    variants = {
        "dense": {"name": "dense", "dropout": 0.5, "points": None},
        "points=2": {"name": "ms_deform", "points": 2, "refine": True, "strides": [8, 16]},
        "points=4": {"name": "ms_deform", "points": 4, "refine": False, "strides": [8, 16, 32]},
    }
    hyperparameters, trial_ids = {}, {}
    for number, (variant, options) in enumerate(variants.items()):
        for seed in (0, 1):
            name = f"{variant}-seed={seed}"
            hyperparameters[name], trial_ids[name] = options, variant
            metrics = MetricsLogger(RunFolder(tmp_path / name))
            metrics.write(3, {"val/AP": number + seed / 2})
            metrics.close()
    for _ in range(2):  # writing again replaces
        hparams.write_hparams(tmp_path, hyperparameters, trial_ids)

    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    assert set(multiplexer.Runs()) == {".", *hyperparameters}
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(tmp_path))
    context = backend_context.Context(TBContext(logdir=str(tmp_path), data_provider=provider))
    experiment = get_experiment.Handler(RequestContext(), context, "", api_pb2.GetExperimentRequest()).run()
    columns = {
        info.name: [value.WhichOneof("kind") for value in info.domain_discrete.values]
        for info in experiment.hparam_infos
    }
    assert columns == {
        "name": ["string_value"] * 2, "dropout": ["string_value"] * 2, "points": ["string_value"] * 3,
        "refine": ["string_value"] * 3, "strides": ["string_value"] * 3,
    }  # fmt: skip

    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=10,
        aggregation_type=api_pb2.AGGREGATION_AVG,
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING, api_pb2.STATUS_SUCCESS],
        col_params=[api_pb2.ColParams(metric=api_pb2.MetricName(tag="val/AP"), order=api_pb2.ORDER_ASC)],
    )
    groups = list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups
    assert [group.name for group in groups] == list(variants)
    assert [len(group.sessions) for group in groups] == [2, 2, 2]
    averages = {group.name: m.value for group in groups for m in group.metric_values if m.name.tag == "val/AP"}
    assert averages == {"dense": 0.25, "points=2": 1.25, "points=4": 2.25}
    values = dict(groups[1].hparams)
    assert values["points"].string_value == "2"
    assert values["refine"].string_value == "True"
    assert values["strides"].string_value == "[8, 16]"
    # without a value for each column, parallel coordinates leave a run out
    assert values["dropout"].string_value == "n/a"
    assert dict(groups[0].hparams)["points"].string_value == "n/a"
