"""Faults on a real cluster, in the middle of training: SLURM reports them, and the results stay the same."""

import pytest
from support.engine import results
from support.slurm import INTERVAL_STEPS, Sweep, report, wait

from attnzoo import __main__ as attnzoo_main
from attnzoo.rundir import attempts

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
STEPS = 60


def assert_survived(sweep: Sweep, undisturbed: list[dict], fault: str, allowed: int, injected: int = 1) -> None:
    """The run is complete, its metrics are identical, and no more than `allowed` steps were repeated."""
    states = sweep.wait_for_end()
    assert states["seed=3"].state == "done", sweep.describe("seed=3")
    assert results(sweep.run()) == undisturbed
    report(fault, injected, states["seed=3"].steps_lost, allowed)


def test_two_preemptions_with_the_signal_lose_no_step(cluster, sweep, undisturbed):
    sweep.submit("slurm.partition=preemptible")
    for count in (1, 2):
        reached = sweep.wait_for_step(20 * count)
        assert reached < STEPS
        cluster.preempt()
        wait(lambda count=count: cluster.restarts(sweep.job()) >= count, 180, "for the preemption")
    assert_survived(sweep, undisturbed, "preemption with the user signal", allowed=0, injected=2)
    assert [attempt.reason for attempt in attempts.read(sweep.run())[:2]] == ["SIGUSR2", "SIGUSR2"]
    assert sweep.state().restarts == 2
    assert sweep.state().machine_failures == 0


def test_killed_run_resumes_on_another_node(cluster, sweep, undisturbed):
    sweep.submit()
    assert sweep.wait_for_step(25) < STEPS
    node = cluster.kill_rank(sweep.job())
    wait(lambda: cluster.restarts(sweep.job()) == 1, 180, "for the requeue")
    wait(lambda: cluster.job(sweep.job())["ExcNodeList"] == node, 120, f"for {node} to be excluded")
    assert_survived(sweep, undisturbed, "process killed", allowed=INTERVAL_STEPS)
    first, second = attempts.read(sweep.run())
    assert (first.outcome, first.reason) == (attempts.MACHINE, "killed by SIGKILL")
    assert first.host == node != second.host
    assert sweep.state().machine_failures == 1


def test_preemption_without_the_signal_loses_no_more_than_an_interval(cluster, sweep, undisturbed):
    sweep.submit("slurm.partition=killable")
    assert sweep.wait_for_step(25) < STEPS
    cluster.preempt()
    wait(lambda: cluster.restarts(sweep.job()) == 1, 180, "for the preemption")
    assert_survived(sweep, undisturbed, "preemption without the signal", allowed=INTERVAL_STEPS)
    assert attempts.read(sweep.run())[0].reason != "SIGUSR2"


def test_lost_node_costs_no_more_than_an_interval(cluster, sweep, undisturbed):
    sweep.submit()
    assert sweep.wait_for_step(25) < STEPS
    node = sweep.state().host
    cluster.kill_node(node)
    wait(
        lambda: "DOWN" in cluster.node_state(node),
        180,
        lambda: f"for {node} to be down: {cluster.node_state(node)} {cluster.job(sweep.job())}",
    )
    wait(lambda: cluster.restarts(sweep.job()) == 1, 180, "for the requeue")
    try:
        assert_survived(sweep, undisturbed, "node killed", allowed=INTERVAL_STEPS)
    finally:
        cluster.revive(node)
    first, second = attempts.read(sweep.run())
    assert first.outcome is None  # no process was left to record it
    assert first.host == node != second.host


def test_time_limit_requeues_and_loses_no_step(cluster, sweep):
    sweep.submit("train.steps=900", "train.checkpoint_minutes=10")
    sweep.wait_for_step(10)
    cluster.ask("scontrol", "update", f"JobId={sweep.job()}", "TimeLimit=1")
    wait(lambda: cluster.restarts(sweep.job()) == 1, 240, "for the time limit")
    first = attempts.read(sweep.run())[0]
    assert (first.outcome, first.reason) == ("interrupted", "SIGUSR2")
    wait(lambda: len(attempts.read(sweep.run())) == 2, 60, "for the second start")
    second = attempts.read(sweep.run())[1]
    report("time limit", 1, second.steps_lost, allowed=0)
    assert 10 <= second.step < 900
    restarts = cluster.restarts(sweep.job())  # more than one if a start took longer than the limit
    cluster.ask("scancel", sweep.job())
    assert_cancelled(cluster, sweep, restarts)


def test_cancelled_run_saves_and_is_not_requeued_until_submitted_again(cluster, sweep, undisturbed):
    sweep.submit()
    assert sweep.wait_for_step(25) < STEPS
    assert attnzoo_main.main(["cancel", str(sweep.runs)]) == 0
    assert_cancelled(cluster, sweep, restarts=0)
    assert sweep.run().last_step() == sweep.step() < STEPS
    assert sweep.start("launcher=slurm", "--only", "failed", "--dry-run") == 0
    sweep.submit("--only", "interrupted")
    assert_survived(sweep, undisturbed, "cancelled, submitted again", allowed=0)


def assert_cancelled(cluster, sweep: Sweep, restarts: int) -> None:
    """The run ends, is not requeued, and its state is cancelled."""
    wait(lambda: cluster.job(sweep.job())["JobState"] == "CANCELLED", 180, "for the cancellation")
    wait(lambda: sweep.run().read_status()["state"] == "cancelled", 180, "for the run to record it")
    assert cluster.restarts(sweep.job()) == restarts
    assert sweep.state().state == "cancelled"
    assert not sweep.state().active


@pytest.mark.parametrize("options", [["--signal=USR1"], ["--signal=HUP"], ["--full", "--signal=USR1"]])
def test_a_signal_that_a_user_sends_saves_and_requeues(cluster, sweep, undisturbed, options):
    """With --full also to the shell of the job and to srun."""
    sweep.submit()
    assert sweep.wait_for_step(20) < STEPS
    cluster.ask("scancel", *options, sweep.job())
    assert_survived(sweep, undisturbed, f"scancel {' '.join(options)}", allowed=0)
    assert cluster.restarts(sweep.job()) == 1
