"""Faults on a real cluster: SLURM says that they happened, at an unfinished step, and the results are the same."""

import pytest
from support_engine import results
from support_slurm import INTERVAL_STEPS, Sweep, wait

from attnzoo import attempts

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
STEPS = 60


def assert_survived(sweep: Sweep, undisturbed: list[dict], lost: int) -> None:
    """The run is complete and the same, and no more than `lost` steps were repeated."""
    states = sweep.wait_for_end()
    assert states["seed=3"].state == "done", sweep.tell("seed=3")
    assert results(sweep.run()) == undisturbed
    assert states["seed=3"].steps_lost <= lost


def test_two_preemptions_with_the_signal_lose_no_step(cluster, sweep, undisturbed):
    sweep.submit("slurm.partition=preemptible")
    for count in (1, 2):
        reached = sweep.wait_for_step(20 * count)
        assert reached < STEPS
        cluster.preempt()
        wait(lambda count=count: cluster.restarts(sweep.job()) >= count, 60, "for the preemption")
    assert_survived(sweep, undisturbed, lost=0)
    assert [one.reason for one in attempts.read(sweep.run())[:2]] == ["SIGUSR2", "SIGUSR2"]
    assert sweep.state().requeued == 2
    assert sweep.state().machine_failures == 0


def test_a_killed_run_resumes_on_another_node(cluster, sweep, undisturbed):
    sweep.submit()
    assert sweep.wait_for_step(25) < STEPS
    node = cluster.kill_rank(sweep.job())
    wait(lambda: cluster.restarts(sweep.job()) == 1, 60, "for the requeue")
    assert cluster.job(sweep.job())["ExcNodeList"] == node
    assert_survived(sweep, undisturbed, lost=INTERVAL_STEPS)
    first, second = attempts.read(sweep.run())
    assert (first.outcome, first.reason) == (attempts.MACHINE, "killed by SIGKILL")
    assert first.host == node != second.host
    assert sweep.state().machine_failures == 1
