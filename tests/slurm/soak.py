"""Injects random faults into one sweep: `python tests/slurm/soak.py [--faults 30] [--seed 0]`.

The exit code is 0 if every run is complete and has the metrics of an undisturbed one. Writes soak.md and soak.json
into --output.
"""

import argparse
import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.engine import results
from support.slurm import Cluster, Sweep, kill, processes, train_here, wait

from attnzoo import __main__ as attnzoo_main
from attnzoo.config import load as configs
from attnzoo.rundir import attempts
from attnzoo.rundir.attempts import Attempt
from attnzoo.rundir.folder import RunFolder

SECONDS = 1.0  # that each step sleeps
MINUTES = 0.1  # between checkpoints
SUPERVISOR = b"submitit.core._submit"
# Two arrays: the jobs of one get a signal before preemption, those of the other do not.
SWEEP = (
    "sweep.zip={model.ffn: [16, 32], slurm.partition: [preemptible, killable]}",
    "sweep.seeds=[0, 1]",
    "slurm.retries=5",
    f"train.checkpoint_minutes={MINUTES}",
)
KINDS = ("rank_killed", "node_lost", "power_cut", "preempted", "time_over", "cancelled", "supervisor_killed")


class FaultInjector:
    """Injects faults into the runs of a sweep, one after the other."""

    def __init__(self, cluster: Cluster, sweep: Sweep, steps: int, seed: int, kinds: Sequence[str] = KINDS):
        self.cluster, self.sweep, self.steps, self.kinds = cluster, sweep, steps, kinds
        self.random = random.Random(seed)
        self.faults: list[dict[str, object]] = []

    def inject(self) -> None:
        """Inject one fault into a training run, and wait until SLURM reports it."""
        name = self._wait_for_training_run()
        kind = getattr(self, self.random.choice(self.kinds))
        job, step = self.sweep.job(name), self.sweep.step(name)
        facts = self.cluster.job(job)
        if facts["JobState"] != "RUNNING" or not processes(facts["JobId"], SUPERVISOR):
            return  # still handling the previous fault
        if not self.cluster.rank_processes(facts["JobId"]):
            return  # about to start again
        # its files are those of its last start until it trains
        wait(lambda: self.sweep.step(name) != step, 120, f"for {name} to train")
        step = self.sweep.step(name)
        print(f"{len(self.faults) + 1}: {kind.__name__} of {name} at step {step}", flush=True)
        kind(name, job)
        self.faults.append({"kind": kind.__name__.replace("_", " "), "run": name, "step": step, "steps": self.steps})

    def rank_killed(self, name: str, job: str) -> None:
        before = self.cluster.restarts(job)
        self.cluster.kill_rank(self.cluster.job(job)["JobId"])
        self._wait_for_restart(job, before)

    def power_cut(self, name: str, job: str) -> None:
        """The node is lost, and with it what the run has not synced."""
        self.node_lost(name, job, after_kill=lambda: lose_unsynced(self.sweep.run(name), self.random))

    def node_lost(self, name: str, job: str, after_kill: Callable[[], object] = lambda: None) -> None:
        before, node = self.cluster.restarts(job), self.cluster.job(job)["NodeList"]
        self.cluster.kill_node(node)
        after_kill()
        wait(lambda: "DOWN" in self.cluster.node_state(node), 120, f"for {node} to be down")
        self._wait_for_restart(job, before)
        self.cluster.revive(node)

    def preempted(self, name: str, job: str) -> None:
        before = self.cluster.restarts(job)
        self.cluster.preempt()
        self._wait_for_restart(job, before)

    def time_over(self, name: str, job: str) -> None:
        before = self.cluster.restarts(job)
        hours, minutes, _ = map(int, self.cluster.job(job)["RunTime"].split(":"))
        self.cluster.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * hours + minutes + 1}")
        self._wait_for_restart(job, before)
        self.cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=60")

    def cancelled(self, name: str, job: str) -> None:
        assert attnzoo_main.main(["cancel", str(self.sweep.runs), name]) == 0
        wait(lambda: self.cluster.job(job)["JobState"] == "CANCELLED", 120, "for the cancellation")
        self._resubmit(name, job)

    def supervisor_killed(self, name: str, job: str) -> None:
        """The job fails without being requeued, unless SLURM is just preempting it."""
        raw, before = self.cluster.job(job)["JobId"], self.cluster.restarts(job)
        for pid in processes(raw, SUPERVISOR):
            kill(pid)

        def failed() -> bool:
            return self.cluster.job(job)["JobState"] == "FAILED"

        wait(lambda: failed() or self.cluster.restarts(job) > before, 180, f"for the end of {job}")
        if failed():
            self._resubmit(name, job)

    def _resubmit(self, name: str, job: str) -> None:
        self.sweep.submit()
        assert self.sweep.job(name) != job

    def _wait_for_restart(self, job: str, before: int) -> None:
        wait(lambda: self.cluster.restarts(job) > before, 180, f"for the requeue of {job}")

    def _wait_for_training_run(self) -> str:
        names: list[str] = []

        def training() -> bool:
            states = self.sweep.states().values()
            assert not all(status.state == "done" for status in states), "the sweep ended before the faults did"
            broken = [status for status in states if status.state in ("failed", "dead")]
            assert not broken, broken
            running = [status for status in states if status.state == "running"]
            names[:] = [status.name for status in running if 0 < (status.step or 0) < self.steps - 50]
            return bool(names)

        wait(training, 300, "for a run that trains")
        time.sleep(self.random.uniform(0, 4))
        training()
        return self.random.choice(names) if names else self._wait_for_training_run()


def lose_unsynced(run: RunFolder, rng: random.Random) -> None:
    """Cut the rows of metrics since the last checkpoint, with which they are synced, and the log, anywhere.

    Another part of what is left reads as zeros, and the file of a checkpoint that was being written is empty.
    """
    content = run.metrics.read_bytes()
    rows = [row + b"\n" for row in content.split(b"\n")[:-1]]
    synced = sum(len(row) for row in rows if json.loads(row)["step"] <= run.last_step())
    end = rng.randint(synced, len(content))
    zeros = rng.choice([0, min(end - synced, 100)])
    run.metrics.write_bytes(content[: end - zeros] + b"\0" * zeros)
    log = run.log.read_bytes()
    run.log.write_bytes(log[: rng.randrange(len(log) + 1)])
    (run.checkpoints / f".step-{run.last_step() + 1:08d}.{'0' * 16}.pt.00000000").touch()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--steps", type=int, default=600, help="of each run; they must outlast the faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of faults")
    parser.add_argument("--output", type=Path, default=Path("docs/results/soak"))
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir="/tmp"))
    os.environ["ATTNZOO_CACHE"] = str(folder / "cache")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    try:
        with Cluster(folder / "c").up() as cluster:
            return soak(cluster, folder, args)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def soak(cluster: Cluster, folder: Path, args: argparse.Namespace) -> int:
    """Submit, inject faults, wait, compare; returns the exit code."""
    start_time = time.time()
    sweep = Sweep(folder / "sweep")
    sweep.overrides += [*SWEEP, f"train.steps={args.steps}"]
    os.environ["ATTNZOO_TEST_SLEEP"] = str(SECONDS)
    sweep.submit()
    injector = FaultInjector(cluster, sweep, args.steps, args.seed, args.kinds)
    while len(injector.faults) < args.faults:
        injector.inject()
    wait(lambda: not any(status.active for status in sweep.states().values()), 1200, "for the end of the sweep")
    seconds = time.time() - start_time
    same = {name: same_as_undisturbed(sweep, name) for name in sweep.states()}
    write_report(sweep, injector, same, args.seed, seconds, args.output.resolve())
    return 0 if all(same.values()) else 1


def same_as_undisturbed(sweep: Sweep, name: str) -> bool:
    """Whether the run has the metrics of its config trained in this process, without faults."""
    undisturbed = train_here(configs.load(sweep.run(name).config), sweep.folder / "undisturbed" / name)
    return undisturbed == results(sweep.run(name))


def write_report(
    sweep: Sweep, injector: FaultInjector, same: dict[str, bool], seed: int, seconds: float, output: Path
) -> None:
    """Print the report, and write it to `output`."""
    states = sweep.states()
    journals = {name: attempts.read(sweep.run(name)) for name in states}
    lost = repeated(journals.values())
    kinds = Counter(str(fault["kind"]) for fault in injector.faults)
    lines = [
        "# Soak",
        "",
        f"`make test-long`: {len(injector.faults)} random faults (seed {seed}) on one sweep of {len(states)} runs of "
        f"{injector.steps} steps on two nodes, in {seconds / 60:.0f} minutes. A step takes {SECONDS:g} s or more; "
        f"checkpoints are {60 * MINUTES:g} s apart, or a step longer.",
        "",
        "| run | state | starts | machine failures | steps repeated | metrics as undisturbed |",
        "| --- | --- | --: | --: | --: | --- |",
        *(
            f"| {name} | {status.state} | {status.restarts + 1} | {status.machine_failures} | {status.steps_lost} "
            f"| {'identical' if same[name] else 'DIFFERENT'} |"
            for name, status in states.items()
        ),
        "",
        "| fault | times |",
        "| --- | --: |",
        *(f"| {kind} | {count} |" for kind, count in sorted(kinds.items())),
        "",
        "A preemption hits all running runs. How starts ended, and the steps that the next start repeated:",
        "",
        "| end of a start | times | steps repeated, mean | at most |",
        "| --- | --: | --: | --: |",
        *(
            f"| {end} | {len(steps)} | {sum(steps) / len(steps):.1f} | {max(steps)} |"
            for end, steps in sorted(lost.items())
        ),
    ]
    output.mkdir(parents=True, exist_ok=True)
    (output / "soak.md").write_text("\n".join(lines) + "\n")
    raw = {
        "seed": seed,
        "seconds": round(seconds),
        "faults": injector.faults,
        "runs": {name: {"state": status.state, "identical": same[name]} for name, status in states.items()},
        "attempts": {name: [dataclasses.asdict(attempt) for attempt in journal] for name, journal in journals.items()},
    }
    (output / "soak.json").write_text(json.dumps(raw, indent=1) + "\n")
    print("\n".join(lines))


def repeated(journals: Iterable[Sequence[Attempt]]) -> dict[str, list[int]]:
    """The steps that the next start of a run repeated, by how the start before ended."""
    steps: dict[str, list[int]] = {}
    for journal in journals:
        for attempt, following in itertools.pairwise(journal):
            end = f"{attempt.outcome} ({attempt.reason})" if attempt.outcome else "not recorded"
            steps.setdefault(end, []).append(following.steps_lost)
    return steps


if __name__ == "__main__":
    sys.exit(main())
