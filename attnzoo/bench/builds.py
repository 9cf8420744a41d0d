"""Builds of the operators from other sources, and processes that time them in turns."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attnzoo
from attnzoo.environment import csrc_hash
from attnzoo.errors import UserError, did_you_mean

ROOT = Path(attnzoo.__file__).resolve().parents[1]
WORKER = Path(__file__).with_name("build_worker.py")
LIBRARY, BUILD_INFO = Path("attnzoo/ops/_C.abi3.so"), Path("attnzoo/ops/_build.json")
NOT_SOURCES = (".*", "build", "dist", "runs", "site", "*.egg-info", "*.so", "_build.json", "__pycache__", "shared")


def find_commit(revision: str) -> str:
    """The commit that a revision names. Raises UserError without git, outside of a checkout, or for an unknown name."""
    if shutil.which("git") is None:
        raise UserError(f"--base {revision}: git is not installed")
    if not (ROOT / ".git").exists():
        raise UserError(f"--base {revision}: attnzoo does not run from a git checkout ({ROOT})")
    found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if found.returncode:
        names = _git("for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags").stdout.split()
        raise UserError(f"--base {revision}: not a commit of this repository{did_you_mean(revision, names)}")
    return found.stdout.strip()


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A temporary worktree of a commit. Raises UserError if git cannot make it."""
    with tempfile.TemporaryDirectory(prefix="attnzoo-") as scratch:
        folder = Path(scratch) / "base"
        added = _git("worktree", "add", "--quiet", "--detach", str(folder), commit)
        try:
            if added.returncode:
                raise UserError(f"{commit[:9]} cannot be checked out: {_last_line(added.stderr)}")
            yield folder
        finally:
            _git("worktree", "remove", "--force", str(folder))


@contextmanager
def base_and_working_tree(commit: str) -> Iterator[tuple[Path, Path]]:
    """Folders with the sources of a commit and of the working tree, operators built.

    The library of the working tree is used where it stands if it is up to date, else a copy of the sources is built.
    A commit with the same csrc/ and setup.py gets a copy of that library.
    """
    with checkout(commit) as base, tempfile.TemporaryDirectory(prefix="attnzoo-") as scratch:
        tree = ROOT
        if not is_built(ROOT):
            tree = copy_sources(Path(scratch) / "tree")
            build(tree)
        setups = [(folder / "setup.py").read_bytes() for folder in (base, tree)]
        if csrc_hash(base) == csrc_hash(tree) and setups[0] == setups[1]:
            for file in (LIBRARY, BUILD_INFO):
                shutil.copyfile(tree / file, base / file)
        else:
            build(base)
        yield base, tree


def is_built(folder: Path) -> bool:
    """Whether the library in a folder was compiled from the csrc/ that is there now."""
    if not ((folder / LIBRARY).exists() and (folder / BUILD_INFO).exists()):
        return False
    info = json.loads((folder / BUILD_INFO).read_text(encoding="utf-8"))
    return bool(info.get("csrc") == csrc_hash(folder))


def copy_sources(folder: Path) -> Path:
    """Copy the working tree, without what was built, to a new folder."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_SOURCES), symlinks=True)
    return folder


def build(folder: Path) -> None:
    """Compile the CPU operators in a folder of sources. Raises UserError with the compiler's first error."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    variables = os.environ | {"PYTHONPATH": str(folder), "ATTNZOO_CUDA": "0", "ATTNZOO_COMPILE": "1"}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "error:" in line or "attnzoo: no" in line]
        reason = lines[0].removeprefix("attnzoo: ") if lines else _last_line(done.stderr)
        raise UserError(f"the operators cannot be built: {reason.replace(f'{folder}/', '')}")


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no message")


class WorkerError(Exception):
    """A worker cannot do what it was asked for."""


class Worker:
    """A process that times the operators built in `folder`, on the CPU, and ends with the `with` block.

    `variables` are added to its environment, such as ATTNZOO_SIMD.
    """

    def __init__(self, folder: Path, threads: int, variables: Mapping[str, str] | None = None):
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": str(threads), **(variables or {})}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            cwd=folder, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._ask({"threads": threads})

    def prepare(self, operator: str, case: str, sizes: str, inputs: Path, outputs: Path) -> None:
        """Load the tensors of a measurement; write output and gradients to `outputs`. Raises WorkerError."""
        files = {"inputs": str(inputs), "outputs": str(outputs)}
        self._ask({"operator": operator, "case": case, "sizes": sizes, **files})

    def time(self, backward: bool, repeats: int = 1) -> float:
        """Mean seconds of `repeats` calls of what was prepared, after one call that is not timed."""
        return float(self._ask({"backward": backward, "repeats": repeats})["seconds"])

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the process has ended with exit code {self._process.wait()}")
        answer = dict(json.loads(line))
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer


def take_turns(
    workers: Mapping[str, Worker], backward: bool, repeats: int, rounds: Iterable[object]
) -> dict[str, list[float]]:
    """Samples of seconds per call of workers prepared alike; every round begins with the next worker."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    order = list(workers)
    for _ in rounds:
        for name in order:
            seconds[name].append(workers[name].time(backward, repeats))
        order = order[1:] + order[:1]
    return seconds
