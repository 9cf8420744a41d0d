"""Runs of several processes on two nodes: the same losses as one process, and a failure of one ends all."""

import pytest
from support.engine import results
from support.slurm import INTERVAL_STEPS, reference, report, wait

from attnzoo.rundir import attempts

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
DETERMINISTIC = ("model.dropout=0", "model.backbone.norm=frozen", "train.steps=6")
PAIR = ("processes=2", "slurm.nodes=2")


def test_four_processes_on_two_nodes_give_the_losses_of_one(cluster, sweep):
    sweep.overrides += DETERMINISTIC
    sweep.submit("processes=4", "slurm.nodes=2")
    one = reference(sweep)
    assert sweep.wait_for_end()["seed=3"].state == "done", sweep.describe("seed=3")
    shown = cluster.job(sweep.job())
    assert (shown["NumNodes"], shown["NumTasks"]) == ("2", "4")
    four = results(sweep.run())
    assert len(four) == len(one)
    for ours, theirs in zip(four, one, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)


def test_rank_that_raises_ends_the_job_and_is_not_retried(cluster, sweep, monkeypatch):
    monkeypatch.setenv("ATTNZOO_TEST_RAISE", "1:4")
    sweep.submit(*PAIR)
    state = sweep.wait_for_end()["seed=3"]
    assert (state.state, state.note) == ("failed", "RuntimeError: injected failure in process 1")
    wait(lambda: cluster.job(sweep.job())["JobState"] == "FAILED", 180, "for the job's end")
    assert cluster.restarts(sweep.job()) == 0
    log = sweep.run().log.read_text()
    assert log.index("injected failure in process 1") < log.find("lost a peer process") % len(log)
    assert log.count("Traceback") == 1
    assert [attempt.outcome for attempt in attempts.read(sweep.run())] == ["failed"]


def test_killed_rank_ends_the_others_and_all_resume(cluster, sweep):
    whole = reference_of_pair(sweep)
    sweep.submit(*PAIR)
    assert sweep.wait_for_step(20) < 60
    cluster.kill_rank(sweep.job(), rank=1)
    wait(lambda: cluster.restarts(sweep.job()) == 1, 180, "for the requeue")
    state = sweep.wait_for_end()["seed=3"]
    assert state.state == "done", sweep.describe("seed=3")
    assert state.machine_failures == 1
    report("process killed, one of two on two nodes", 1, state.steps_lost, INTERVAL_STEPS)
    assert results(sweep.run()) == whole


def test_node_that_cannot_start_a_process_is_a_machine_failure(cluster, sweep):
    """Its daemon has ended, which SLURM does not know yet."""
    go = sweep.folder / "go"
    sweep.submit("train.steps=6", f"slurm.setup=['while [ ! -e {go} ]; do sleep 0.1; done']")
    job = sweep.job()
    wait(lambda: cluster.job(job)["JobState"] == "RUNNING", 120, "for the job's start")
    lost = cluster.job(job)["BatchHost"]
    cluster.kill_daemon(lost)
    try:
        go.touch()
        wait(lambda: cluster.job(job)["ExcNodeList"] == lost, 120, lambda: f"for {sweep.describe('seed=3')}")
        wait(lambda: "DOWN" in cluster.node_state(lost), 120, f"for {lost} to be down")
    finally:
        cluster.revive(lost)
    state = sweep.wait_for_end()["seed=3"]
    assert (state.state, state.machine_failures) == ("done", 1), sweep.describe("seed=3")
    assert attempts.read(sweep.run())[0].reason == "lost a process of the run"


def reference_of_pair(sweep) -> list[dict]:
    """The metrics of the same run with two processes of the local launcher."""
    assert sweep.start("processes=2", f"output={sweep.folder / 'whole'}") == 0
    return results(type(sweep.run())(sweep.folder / "whole" / "faults" / "seed=3"))
