"""The trainer on a task of a millisecond per step: resuming, accumulation, averaging, divergence, interruption."""

import math
import signal

import pytest
import torch
from support.engine import BATCHES, Regression, Run, train_config

from attnzoo.engine.checkpoint import load_checkpoint
from attnzoo.engine.interrupt import GracefulStop, TrainingInterrupted
from attnzoo.engine.trainer import TrainingDiverged, count_steps
from attnzoo.errors import UserError


class Killed(BaseException):
    """The end of the process."""


def kill_after(run: Run, steps: int) -> None:
    """Make the trainer die within step number `steps`, after the weights have changed."""
    inner = run.trainer._train_step

    def step(batches):
        inner(batches)
        if run.trainer.step == steps:
            raise Killed

    run.trainer._train_step = step


def weights(run: Run) -> torch.Tensor:
    return torch.cat([p.flatten() for p in run.task.model.state_dict().values()])


def test_rows_hold_means_since_the_last_row_and_the_learning_rate(tmp_path):
    rows = Run(tmp_path, log_every=10).train()
    training = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in training] == [10, 20, 25]
    each = [row for row in Run(tmp_path / "each", log_every=1).train() if "train/loss" in row]
    for row, first in zip(training, (0, 10, 20), strict=True):
        window = each[first : row["step"]]
        for key in ("train/loss", "train/loss_l1", "train/grad_norm"):
            assert row[key] == pytest.approx(sum(r[key] for r in window) / len(window), rel=1e-6)
        assert row["train/lr"] == window[-1]["train/lr"]
    assert training[0]["train/loss"] == pytest.approx(2 * training[0]["train/loss_l1"])


def test_nan_metric_is_omitted(tmp_path):
    (row,) = [row for row in Run(tmp_path).train() if "val/AP" in row]
    assert row.keys() == {"step", "val/AP"}


def test_training_learns_and_evaluates_once_at_the_end_by_default(tmp_path):
    run = Run(tmp_path, Regression(dropout=0.0, norm=False), steps=200, log_every=20)
    losses = [row["train/loss"] for row in run.train() if "train/loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    assert run.task.evaluations == 1


@pytest.mark.parametrize(("killed_at", "ema"), [(1, 0.9), (7, 0.9), (10, 0.9), (13, None), (24, 0.9), (25, None)])
def test_resuming_after_a_kill_repeats_the_uninterrupted_run(tmp_path, killed_at, ema):
    options = {"checkpoint_every": 3, "eval_every": 5, "ema": ema, "accumulate": 1}
    uninterrupted = Run(tmp_path / "whole", **options)
    rows = uninterrupted.train()

    first = Run(tmp_path / "killed", **options)
    kill_after(first, killed_at)
    with pytest.raises(Killed):
        first.train()
    torch.manual_seed(123)  # a new process has another random state
    second = Run(tmp_path / "killed", **options)
    assert second.train() == rows
    assert second.trainer.step == 25
    assert torch.equal(weights(second), weights(uninterrupted))
    assert second.trainer.best == uninterrupted.trainer.best
    best = second.checkpoints.best()
    assert best is not None
    assert best.name.split(".")[0] == uninterrupted.checkpoints.best().name.split(".")[0]


def test_kill_during_evaluation_evaluates_again(tmp_path):
    rows = Run(tmp_path / "whole", eval_every=5).train()
    first = Run(tmp_path / "killed", eval_every=5)
    inner = first.task.evaluate

    def evaluate(forward, heartbeat):
        if first.trainer.step == 10:
            raise Killed
        return inner(forward, heartbeat)

    first.task.evaluate = evaluate
    with pytest.raises(Killed):
        first.train()
    second = Run(tmp_path / "killed", eval_every=5)
    assert second.train() == rows
    assert second.task.evaluations == 4  # at 10, 15, 20 and 25


def test_evaluation_does_not_change_training(tmp_path):
    never = [row for row in Run(tmp_path / "never").train() if "train/loss" in row]
    often = [row for row in Run(tmp_path / "often", eval_every=1).train() if "train/loss" in row]
    assert never == often


def test_best_checkpoint_has_the_best_evaluation(tmp_path):
    run = Run(tmp_path, eval_every=5)
    evaluated = {row["step"]: row["val/AP"] for row in run.train() if "val/AP" in row}
    best = run.checkpoints.best()
    assert best is not None
    assert load_checkpoint(best)["step"] == max(evaluated, key=evaluated.__getitem__)
    assert run.trainer.best == max(evaluated.values())


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    large = Run(tmp_path / "large", Regression(batch_size=8, dropout=0.0, norm=False), steps=8, log_every=1)
    small = Run(
        tmp_path / "small", Regression(batch_size=4, dropout=0.0, norm=False), steps=8, log_every=1, accumulate=2
    )
    # one epoch is 10 batches of 4 = 5 steps of 8: give the large run the same images per epoch
    large.task.batches_per_epoch = large.trainer.steps_per_epoch = BATCHES // 2
    for ours, theirs in zip(small.train(), large.train(), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert torch.allclose(weights(small), weights(large), atol=1e-6)


def test_ema_follows_the_weights(tmp_path):
    run = Run(tmp_path, ema=0.5, steps=1)
    before = {name: value.clone() for name, value in run.task.model.state_dict().items()}
    run.train()
    after, average = run.task.model.state_dict(), run.trainer.ema.module.state_dict()
    for name, value in before.items():
        if value.is_floating_point():
            torch.testing.assert_close(average[name], (value + after[name]) / 2)
            assert not torch.equal(after[name], value) or name == "1.bias"


def test_ema_weights_are_evaluated(tmp_path):
    run = Run(tmp_path, ema=0.99)
    rows = run.train()
    values = run.task.evaluate(run.trainer.ema.module.eval(), lambda: None)
    assert rows[-1]["val/AP"] == values["AP"]
    assert rows[-1]["val/AP"] != run.task.evaluate(run.task.model.eval(), lambda: None)["AP"]


def test_bf16_computes_in_bf16_and_keeps_weights_in_fp32(tmp_path):
    run = Run(tmp_path, precision="bf16")
    seen = set()
    run.task.model[0].register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    assert run.train()[-1]["val/AP"] > 0.3
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in run.task.model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_compiled_model_trains_like_the_eager_one(tmp_path):
    plain = Run(tmp_path / "plain", Regression(dropout=0.0), steps=5, log_every=1).train()
    compiled = Run(tmp_path / "compiled", Regression(dropout=0.0), steps=5, log_every=1, compile=True).train()
    for ours, theirs in zip(compiled, plain, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_divergence_stops_the_run_and_is_never_saved(tmp_path):
    run = Run(tmp_path, Regression(poison=16), checkpoint_every=5)
    with pytest.raises(TrainingDiverged, match=r"step 17: .*loss nan, loss_l1 nan, grad_norm nan.*step-00000015"):
        run.train()
    last = run.checkpoints.latest()
    assert last is not None
    assert load_checkpoint(last)["step"] == 15
    assert all(torch.isfinite(parameter).all() for parameter in run.task.model.parameters())
    assert all(math.isfinite(value) for row in run.dir.read_metrics() for value in row.values())


def test_divergence_before_the_first_checkpoint(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"step 1: .*latest checkpoint: none yet"):
        Run(tmp_path, Regression(poison=0)).train()


def test_stop_request_finishes_the_step_saves_and_resumes(tmp_path):
    rows = Run(tmp_path / "whole").train()
    first = Run(tmp_path / "stopped")
    inner = first.trainer._train_step

    def step(batches):
        if first.trainer.step == 11:
            first.stop.requested = True
        inner(batches)

    first.trainer._train_step = step
    with pytest.raises(TrainingInterrupted):
        first.train()
    last = first.checkpoints.latest()
    assert last is not None
    assert load_checkpoint(last)["step"] == 12
    assert Run(tmp_path / "stopped").train() == rows


def test_stop_request_during_evaluation_keeps_the_step(tmp_path):
    run = Run(tmp_path)
    inner = run.task.evaluate

    def evaluate(forward, heartbeat):
        run.stop.requested = True
        return inner(forward, heartbeat)

    run.task.evaluate = evaluate
    with pytest.raises(TrainingInterrupted):
        run.train()
    assert load_checkpoint(run.checkpoints.latest())["step"] == 25
    second = Run(tmp_path)
    assert "val/AP" in second.train()[-1]
    assert second.task.evaluations == 1


def test_only_a_later_second_sigint_aborts(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    with GracefulStop() as stop:
        for number in (signal.SIGUSR2, signal.SIGINT, signal.SIGTERM):  # SIGINT within a second: torchrun's echo
            signal.raise_signal(number)
        assert stop.requested
        stop._requested_at -= 2
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_checkpoint_of_another_data_set_is_rejected(tmp_path):
    Run(tmp_path, steps=5).train()
    run = Run(tmp_path, steps=5)
    run.trainer.steps_per_epoch = 99
    with pytest.raises(UserError, match="steps_per_epoch = 10, now 99"):
        run.train()


def test_epoch_shorter_than_one_step_is_rejected():
    with pytest.raises(UserError, match=r"train\.accumulate = 11: more than the 10 batches"):
        count_steps(train_config(accumulate=11), BATCHES)


def test_epochs_count_whole_steps():
    assert count_steps(train_config(steps=None, epochs=3, accumulate=4), BATCHES) == (6, 2)
