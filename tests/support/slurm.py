"""A private SLURM cluster for tests, sweeps on it, and faults to inject."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from attnzoo import run as attnzoo_run
from attnzoo.config import load as configs
from attnzoo.config.experiment import ExperimentConfig
from attnzoo.errors import ExitCode
from attnzoo.report.status import RunStatus, sweep_status
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.ledger import Ledger, job_id_of
from attnzoo.worker.train import train_run
from support.engine import results

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "tests" / "support" / "slurm_plugin.py"
EXPERIMENT = """
name: faults
seed: 3
device: cpu
plugins: [{plugin}]
data:
  dataset: {name: digit_scenes, image_size: 32, sizes: [8, 14], train_images: 24, val_images: 6}
  batch_size: 4
model:
  dim: 16
  heads: 2
  ffn: 16
  queries: 5
  dropout: 0.1
  backbone: {name: test_resnet, strides: [8, 16], norm: trained, freeze: []}
  neck: {c6: false}
  encoder: {layers: 1, attention: {name: slow, points: 1}}
  decoder: {layers: 1}
train: {steps: 60, log_every: 1, checkpoint_minutes: {minutes}, pictures: false}
slurm:
  signal_seconds: 20
  setup: [export MASTER_ADDR=127.0.0.1]
"""
MINUTES = 0.02  # between checkpoints
STEP_SECONDS = 0.1  # the shortest step
INTERVAL_STEPS = 1 + round(60 * MINUTES / STEP_SECONDS)  # the most steps between checkpoints


def _cluster_program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cluster", ROOT / "slurm" / "local" / "cluster.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


program = _cluster_program()


def require(programs: Mapping[str, str]) -> None:
    """Skip, or fail with ATTNZOO_REQUIRE_SLURM, if one of these programs (program -> package) is missing."""
    missing = [name for name in programs if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if not missing:
        return
    packages = " ".join(dict.fromkeys(programs[name] for name in missing))
    hint = f"needs SLURM, {', '.join(missing)} missing (Debian: apt-get install {packages})"
    if os.environ.get("ATTNZOO_REQUIRE_SLURM"):
        pytest.fail(hint)
    pytest.skip(f"NOT TESTED HERE: {hint}")


def wait(condition: Callable[[], object], seconds: float = 240, what: str = "", pause: float = 0.1) -> None:
    """Wait until the condition is true, polling every `pause` seconds; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"timed out after {seconds} s {what() if callable(what) else what}"
        time.sleep(pause)


class Cluster:
    """Two nodes under `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder

    @contextmanager
    def up(self, accounting: bool = False) -> Iterator["Cluster"]:
        """Run the cluster in the body of a `with` statement; SLURM's commands use it there."""
        saved = dict(os.environ)
        program.up(self.folder, accounting=accounting)
        try:
            for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))]:
                del os.environ[name]
            os.environ["SLURM_CONF"] = str(self.folder / "slurm.conf")
            os.environ["PYTHONPATH"] = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
            yield self
        finally:
            program.down(self.folder)
            os.environ.clear()
            os.environ.update(saved)
            shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, *command: str) -> str:
        return subprocess.run(command, text=True, capture_output=True, check=True, timeout=60).stdout

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        result = self.ask("scontrol", "show", "job", "--oneliner", job)
        return dict(field.split("=", 1) for field in result.split() if "=" in field)

    def restarts(self, job: str) -> int:
        return int(self.job(job)["Restarts"])

    def node_state(self, node: str) -> str:
        """Its state with all flags: DOWN*, IDLE+COMPLETING and so on."""
        result = self.ask("scontrol", "show", "node", "--oneliner", node)
        return next(field.removeprefix("State=") for field in result.split() if field.startswith("State="))

    def preempt(self) -> str:
        """Occupy both nodes for a moment with a job of higher priority; returns its id."""
        options = ("--partition=debug", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        return self.ask("sbatch", "--parsable", *options).strip()

    def kill_rank(self, job: str, rank: int = 0) -> str:
        """SIGKILL one process of a run; returns its node."""
        for pid, environment in self.rank_processes(job, rank).items():
            os.kill(pid, signal.SIGKILL)
            return environment["SLURMD_NODENAME"]
        raise AssertionError(f"job {job} has no process of rank {rank}")

    def rank_processes(self, job: str, rank: int = 0) -> dict[int, dict[str, str]]:
        """The processes of one rank of a run, with their environments; none while the job starts."""
        found = processes(job, b"attnzoo.worker").items()
        step = {pid: environment for pid, environment in found if "SLURM_STEP_ID" in environment}
        return {pid: environment for pid, environment in step.items() if environment.get("SLURM_PROCID") == str(rank)}

    def kill_node(self, node: str) -> None:
        """SIGKILL all processes of a node, its daemon first, so that none can report it."""
        on_node = [pid for pid, environment in _environments() if environment.get("SLURMD_NODENAME") == node]
        workers = [pid for pid in on_node if str(self.folder).encode() in _read(pid, "environ")]
        steps = {_parent(pid) for pid in workers}
        steps = {pid for pid in steps if _read(pid, "comm").strip() == b"slurmstepd"}
        for pid in [self._daemon(node), *steps, *workers]:
            kill(pid)

    def kill_daemon(self, node: str) -> None:
        """SIGKILL the daemon of a node, but no job."""
        kill(self._daemon(node))

    def _daemon(self, node: str) -> int:
        daemons = [pid for pid, name in program._daemons(self.folder).items() if name == "slurmd"]
        return next(pid for pid in daemons if node.encode() in _read(pid, "cmdline").split(b"\0"))

    def revive(self, node: str) -> None:
        """Restart a killed node and wait until it accepts jobs."""
        program.start_node(self.folder, node)
        wait(lambda: self.node_state(node) in ("IDLE", "MIXED", "ALLOCATED"), 60, f"for {node}")


def kill(pid: int) -> None:
    """SIGKILL a process that may have ended already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def processes(job: str, program: bytes) -> dict[int, dict[str, str]]:
    """The processes of a job whose command names `program`, with their environments."""
    of_job = {pid: environment for pid, environment in _environments() if environment.get("SLURM_JOB_ID") == job}
    return {pid: environment for pid, environment in of_job.items() if program in _read(pid, "cmdline")}


def _environments() -> Iterator[tuple[int, dict[str, str]]]:
    for path in Path("/proc").glob("[0-9]*"):
        fields = _read(int(path.name), "environ").decode(errors="replace").split("\0")
        yield int(path.name), dict(field.split("=", 1) for field in fields if "=" in field)


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (OSError, ProcessLookupError):
        return b""


def _parent(pid: int) -> int:
    stat = _read(pid, "stat").rpartition(b")")[2].split()
    return int(stat[1]) if stat else 0


class Sweep:
    """An experiment in `folder` and its runs; `changes` are overrides, `.` spelt `__`."""

    def __init__(self, folder: Path, **changes: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = folder / "faults.yaml"
        self.file.write_text(EXPERIMENT.replace("{plugin}", str(PLUGIN)).replace("{minutes}", str(MINUTES)))
        self.overrides = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
        self.runs = folder / "runs" / "faults"

    def start(self, *more: str) -> int:
        """Call the command line in this process; returns the exit code."""
        return attnzoo_run.main([str(self.file), f"output={self.folder / 'runs'}", *self.overrides, *more])

    def submit(self, *more: str) -> None:
        assert self.start("launcher=slurm", *more) == 0

    def run(self, name: str = "seed=3") -> RunFolder:
        return RunFolder(self.runs / name)

    def job(self, name: str = "seed=3") -> str:
        job = job_id_of(Ledger(self.runs).read(), name)
        assert job is not None
        return job

    def states(self) -> dict[str, RunStatus]:
        return {status.name: status for status in sweep_status(self.runs)}

    def state(self, name: str = "seed=3") -> RunStatus:
        return self.states()[name]

    def step(self, name: str = "seed=3") -> int:
        """The last step done; exact, since every step writes a row."""
        return max((row["step"] for row in self.run(name).read_metrics()), default=0)

    def wait_for_step(self, step: int, name: str = "seed=3") -> int:
        """Wait until a step is done; returns the last step done, before the run's end."""

        def reached() -> bool:
            assert self.run(name).read_status()["state"] != "failed", self.describe(name)
            return self.step(name) >= step

        wait(reached, what=lambda: f"for step {step}: {self.describe(name)}")
        assert self.run(name).read_status()["state"] == "running", "the run ended before the fault"
        return self.step(name)

    def wait_for_end(self, seconds: float = 300) -> dict[str, RunStatus]:
        """Wait until no run is active; returns their states."""
        # polling calls SLURM, which takes CPU time from the runs
        ended = f"for the end in {self.runs}"
        wait(lambda: not any(status.active for status in sweep_status(self.runs)), seconds, ended, pause=0.5)
        return self.states()

    def describe(self, name: str) -> str:
        """The status and the end of the log of a run, for messages."""
        log = self.run(name).log
        return json.dumps([self.run(name).read_status(), log.read_text()[-2000:] if log.exists() else ""])


def report(fault: str, injected: int, lost: int, allowed: int) -> None:
    """Print a row of docs/results/faults.txt (`pytest -rP`) for survived faults; assert the number of lost steps."""
    print(f"FAULT {fault}: injected {injected}, survived {injected}, steps lost {lost}, allowed {allowed}")
    assert lost <= allowed


def reference(sweep: Sweep, **changes: str) -> list[dict]:
    """The metrics of the same run, trained in this process without interruption."""
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    return train_here(configs.load(sweep.file, [*sweep.overrides, *overrides]), sweep.folder / "reference")


def train_here(config: ExperimentConfig, folder: Path) -> list[dict]:
    """The metrics of a run trained in this process, without the slow attention's sleep."""
    run = RunFolder(folder)
    configs.save(config, run.config)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ATTNZOO_TEST_SLEEP", raising=False)
        assert train_run(run.path) == ExitCode.OK
    return results(run)
