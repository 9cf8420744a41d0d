"""`make gpu` without a GPU: its steps, its errors, and a smoke test on the CPU."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from attnzoo.bench import cli as bench_cli
from attnzoo.bench.operators.benchmark import OPERATORS

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("gpu", ROOT / "tools" / "gpu.py")
gpu = importlib.util.module_from_spec(spec)
sys.modules["gpu"] = gpu
spec.loader.exec_module(gpu)

VARIABLES = gpu.environment("cpu", Path("nowhere"))


def python(program: str, seconds: float = 60) -> "gpu.Step":
    return gpu.Step("try", [sys.executable, "-c", program], seconds)


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`make gpu` as from a terminal, also under `make test`."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    return subprocess.run(["make", "gpu", *arguments], cwd=ROOT, text=True, capture_output=True, env=environment)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_a_one_line_error_and_writes_nothing(tmp_path):
    done = make(f"PYTHON={sys.executable}", f"OUT={tmp_path / 'out'}")
    assert done.returncode != 0
    lines = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("make: ")]
    assert len(lines) == 1
    assert "sees no GPU" in lines[0]
    assert not (tmp_path / "out").exists()


def test_missing_out_is_a_one_line_error():
    done = make()
    assert done.returncode != 0
    assert done.stdout == "OUT is not set: make gpu OUT=folder [WHEELS=folder]\n"


def test_old_torch_and_missing_folder_are_one_line_errors(monkeypatch, capsys, tmp_path):
    arguments = ["--device", "cpu", "--out", str(tmp_path / "out")]
    assert gpu.main([*arguments, "--wheels", str(tmp_path / "absent")]) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path / "file")]) == 2
    assert "not a folder" in capsys.readouterr().err
    monkeypatch.setattr(torch, "__version__", "2.10.1+cu128")
    assert gpu.main(arguments) == 2
    assert capsys.readouterr().err == "error: torch 2.10.1+cu128 is too old: 2.11 or later is needed\n"
    assert not (tmp_path / "out").exists()


def test_a_relative_folder_of_wheels_is_that_of_the_caller(monkeypatch, tmp_path):
    """Steps run in the repository: every install failed, and the run went on without the peers."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wheels").mkdir()
    given = []
    monkeypatch.setattr(gpu, "build_and_install", lambda wheels, *others: given.append(wheels) or [])
    monkeypatch.setattr(gpu, "steps", lambda *arguments: [])
    gpu.main(["--device", "cpu", "--out", "out", "--wheels", "wheels"])
    assert given == [tmp_path / "wheels"]


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("tiny", [False, True])
def test_every_benchmark_is_a_valid_command_line(tmp_path, device, tiny):
    planned = {step.name: step.command for step in gpu.steps(device, tiny, tmp_path, None)}
    assert list(planned) == ["tests", *gpu.RAW]
    for name in gpu.RAW:
        verb, *rest = planned[name][3:]
        assert verb == "bench"
        args = bench_cli.add_arguments(argparse.ArgumentParser()).parse_args(rest)
        assert (args.bench, args.device) == (name.partition("-")[0], device)
        assert args.json == tmp_path / f"{name}.json"
    assert ("cuda" in planned["tests"]) == (device == "cuda" and not tiny)


def test_every_operator_is_measured(tmp_path):
    steps = {step.name: step.command for step in gpu.steps("cuda", False, tmp_path, None)}
    measured = {name for raw in (gpu.MSDA, gpu.DAT, gpu.OTHER_OPS) for name in steps[raw] if name in OPERATORS}
    assert measured == set(OPERATORS)


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_sanitizer_search_path(tmp_path, monkeypatch):
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpu.sysconfig, "get_path", lambda name: str(tmp_path / "nowhere"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert gpu.find_sanitizer(tmp_path / "packages") is None
    places = ["packages/nvidia/cu13/bin", "toolkit/bin", "home/bin", "path"]  # in order of increasing precedence
    for place in places:
        expected = program(tmp_path / place / "compute-sanitizer", "")
        if place == "toolkit/bin":
            (tmp_path / "path").mkdir()
            (tmp_path / "path" / "nvcc").symlink_to(program(tmp_path / place / "nvcc", ""))
        if place == "home/bin":
            monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
        assert gpu.find_sanitizer(tmp_path / "packages") == str(expected)


def test_sanitizer_steps_come_late_and_are_short(tmp_path):
    planned = gpu.steps("cuda", False, tmp_path, "/bin/compute-sanitizer")
    names = [step.name for step in planned]
    assert names[-3:-1] == ["memcheck", "racecheck"]
    checks = [step for step in planned if step.name in gpu.SANITIZER_TOOLS]
    assert 0 < sum(step.seconds for step in checks) <= 80
    assert all(step.command[2:5] == ["/bin/compute-sanitizer", "--tool", step.name] for step in checks)


def test_every_sanitized_test_exists():
    (command, _) = [step.command for step in gpu.sanitizer_steps("sanitizer")]
    pytest_command = command[command.index(sys.executable) :]
    listed = subprocess.run([*pytest_command, "--collect-only"], cwd=ROOT, text=True, capture_output=True).stdout
    chosen = [line for line in listed.splitlines() if "::" in line]
    assert all(any(name in line for line in chosen) for name in gpu.SANITIZED_TESTS), listed
    assert all("[cuda" in line for line in chosen)
    assert len(chosen) < 40


def test_missing_sanitizer_and_its_timeouts_are_not_failures():
    result = gpu.Result("memcheck", f"{gpu.NOT_RUN}: compute-sanitizer was not found", 0, "")
    assert not gpu.is_failure(result)
    assert not gpu.is_failure(gpu.Result("memcheck", "killed after 40 s", 40, ""))
    assert gpu.is_failure(gpu.Result("memcheck", "failed with exit code 9", 3, ""))


def test_archives_are_installed_one_by_one_sdists_last(tmp_path):
    for name in ("b-1.tar.gz", "c-1-py3-none-any.whl", "a-1-py3-none-any.whl", "notes.txt"):
        (tmp_path / name).write_text("")
    steps = gpu.install_steps(tmp_path, Path("target"))
    assert [step.name for step in steps] == [
        "install a-1-py3-none-any.whl", "install c-1-py3-none-any.whl", "install b-1.tar.gz",
    ]  # fmt: skip
    assert all("--no-index" in step.command for step in steps)
    assert gpu.install_steps(None, Path("target")) == []


def test_step_is_killed_at_its_timeout_with_its_children(tmp_path):
    child = f"import time; time.sleep(1); open({str(tmp_path / 'late')!r}, 'w')"
    program = f"import subprocess, sys; print('started', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    result = gpu.run(python(program, seconds=0.6), time.monotonic() + 60, VARIABLES)
    assert result.state == "killed after 0.6 s"
    assert result.seconds < 1
    time.sleep(1)
    assert not (tmp_path / "late").exists()


def test_step_states():
    later = time.monotonic() + 60
    done = gpu.run(python("print('hello')"), later, VARIABLES)
    assert (done.state, done.output) == ("done", "hello\n")
    assert gpu.run(python("raise SystemExit(3)"), later, VARIABLES).state == "failed with exit code 3"
    assert gpu.run(python("print()"), time.monotonic() - 1, VARIABLES).state == "skipped: out of time"


@pytest.mark.slow
def test_smoke_test_on_the_cpu(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "tools/gpu.py", "--device", "cpu", "--tiny", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=900)
    summary = {entry["name"]: entry["state"] for entry in json.loads((out / "summary.json").read_text())}
    checks = {tool: summary.pop(tool) for tool in gpu.SANITIZER_TOOLS}
    assert checks == dict.fromkeys(gpu.SANITIZER_TOOLS, "NOT RUN: no GPU")
    assert "racecheck: NOT RUN: no GPU\n" in done.stdout
    assert summary == dict.fromkeys(["build", "tests", *gpu.RAW, "tables"], "done"), done.stdout
    assert done.returncode == 0
    assert {path.name for path in out.iterdir()} == {
        *(f"{name}.json" for name in gpu.RAW), "scaling.png", "operators.md", "log.txt", "summary.json",
    }  # fmt: skip
    page = (out / "operators.md").read_text()
    assert "| grid_sample |" in page
    assert "### whole models" in page
    assert "### fitted exponents" in page


def test_every_test_that_needs_a_gpu_is_run():
    marked = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if uses_a_gpu(path)]
    assert marked
    for path in marked:
        assert any(path.is_relative_to(ROOT / folder) for folder in gpu.CUDA_TESTS), path


def uses_a_gpu(path: Path) -> bool:
    text = path.read_text()
    return path != Path(__file__) and ("mark.cuda" in text or "DEVICES" in text or "cuda_operators" in text)
