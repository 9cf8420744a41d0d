"""Run the tests outside CI, and log them: `make test-long [FAULTS=30]`.

The log (test-long.txt) names the commit and the machine, and holds the output and exit code of every test, without what
trainings log at each step.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from attnzoo.environment import cpu_name, git_state

TRAINING_LOG = re.compile(r"\d{4}-\d\d-\d\d \S+ (INFO|WARNING) ")
ROOT = Path(__file__).resolve().parents[1]


def commands(faults: int, out: Path) -> dict[str, list[str]]:
    """The tests by name; their results go into folders of `out`."""
    steps = max(100, 20 * faults)  # of each run: enough to outlast the faults
    soak = ["tests/slurm/soak.py", "--faults", str(faults), "--steps", str(steps), "--output", str(out / "soak")]
    return {"long": [sys.executable, "-m", "pytest", "-m", "long", "-n", "2"], "soak": [sys.executable, *soak]}


def describe_run() -> str:
    """Commit, machine and time in one line."""
    code = git_state(ROOT)
    commit = code["commit"] + (" with uncommitted changes" if code["diff"] else "") if code else "unknown"
    return f"commit {commit}; {cpu_name()}, {os.cpu_count()} cores; {datetime.now(UTC).isoformat(timespec='seconds')}"


def run(name: str, command: list[str], log: TextIO) -> int:
    """Run a test, copy its output to the terminal and to `log`, and return its exit code."""
    start_time = time.monotonic()
    write(f"==== {name}", log)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout
    for line in process.stdout:
        write(line.rstrip("\n"), log)
    exit_code = process.wait()
    write(f"==== {name}: exit code {exit_code} after {(time.monotonic() - start_time) / 60:.1f} minutes", log)
    return exit_code


def write(line: str, log: TextIO) -> None:
    print(line, flush=True)
    if (kept := log_line(line)) is not None:
        print(kept, file=log, flush=True)


def log_line(line: str) -> str | None:
    """The line as it is logged, without this machine's folders: TMP for temporary files; None if a training logs it."""
    return None if TRAINING_LOG.match(line) else line.replace(str(ROOT), ".").replace(tempfile.gettempdir(), "TMP")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 if all tests pass, else 1."""
    parser = argparse.ArgumentParser("tools/long_tests.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=30, help="random faults of the soak test")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder for log and results")
    args = parser.parse_args(argv)
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with (out / "test-long.txt").open("w") as log:
        write(describe_run(), log)
        exit_codes = [run(name, command, log) for name, command in commands(args.faults, out).items()]
    return int(any(exit_codes))


if __name__ == "__main__":
    sys.exit(main())
