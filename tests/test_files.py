"""What users or other programs hand over may be a pipe, of any size, nested without end, or no text."""

import ast
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import attnzoo
from attnzoo import files
from attnzoo.bench import records as bench_records
from attnzoo.errors import ExitCode, UserError
from attnzoo.models.weights.files import _options
from attnzoo.report.records import read_records
from attnzoo.report.runs import RESULTS, find_plan
from attnzoo.run import report_errors
from attnzoo.rundir import costs
from attnzoo.rundir.folder import atomic_write, has_types, is_row, is_status, parse_json
from attnzoo.rundir.ledger import Ledger
from attnzoo.rundir.rebuild import JOBS, is_run_name, read_jobs, rebuild

DEEP = "[" * 500 + "]" * 500
HOSTILE = {
    "emptied": b"",
    "null": b"null",
    "number": b"3",
    "list": b"[]",
    "object": b"{}",
    "format alone": b'{"format": 1}',
    "bytes": b"\xff\xfe\x00",
    "deep": f'{{"format": 1, "x": {DEEP}}}'.encode(),
    "too deep for Python": b"[" * 10**5,
    "400 digits": b'{"format": 1, "x": 1%s}' % (b"0" * 400),
    "5,000 digits": b'{"format": 1, "x": 1%s}' % (b"0" * 5000),
    "cut": b'{"format": 1, "runs": [',
}


def make(path: Path, kind: str) -> None:
    """What lies at `path` in place of a file."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 2**40)
    elif kind == "unreadable":
        path.touch(mode=0)
    else:
        path.write_bytes(HOSTILE[kind])


KINDS = ["pipe", "folder", "loop", "sparse", *HOSTILE]
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "costs": (costs.FILENAME, lambda path: costs.read_costs(path.parent)),
    "results": (RESULTS, lambda path: read_records([path.parent])),
    "plan": (RESULTS, lambda path: find_plan([path.parent])),
    "bench": ("record.json", bench_records.read),
    "ledger": ("sweep.json", lambda path: Ledger(path.parent).read()),
    "weights": ("config.json", lambda path: _options({}, path.with_name("model.safetensors"))),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_hostile_file_is_one_line(tmp_path: Path, reader: str, kind: str) -> None:
    name, read = READERS[reader]
    make(tmp_path / name, kind)
    try:
        read(tmp_path / name)
    except UserError as error:
        message = str(error)
        assert str(tmp_path) in message
        assert len(message) < 500
        assert "\n" not in message
        assert reader != "weights"


COSTS = {
    "format": 1,
    "baseline": "a",
    "variants": [
        {
            "name": "a",
            "digest": "",
            "size": [8, 8],
            "batch_size": 1,
            "params": 1,
            "trainable": 1,
            "gflops": 1.0,
            "extra_gflops": 0.0,
            "modules": [{"name": "m", "params": 1, "gflops": 1.0, "extra_gflops": 0.0}],
            "latency": [0.1, 0.2],
            "throughput": [0.1],
            "training": [],
            "inference_memory": None,
            "training_memory": 5,
        }
    ],
    "notes": ["n"],
    "seconds": 1.0,
    "environment": {},
}
WRONG = [None, "x", [], {}, [None], 10**90, -1, True, [[1]]]


def places(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in [(*prefix, key), *places(item, (*prefix, key))]]


@pytest.mark.parametrize("place", places(COSTS), ids=lambda place: ".".join(map(str, place)))
def test_costs_with_a_wrong_field_are_refused_or_can_be_used(tmp_path: Path, place: tuple[Any, ...]) -> None:
    messages: list[str] = []
    for wrong in [*WRONG, ...]:
        content = json.loads(json.dumps(COSTS))
        block = content
        for key in place[:-1]:
            block = block[key]
        if wrong is ...:
            del block[place[-1]]
        else:
            block[place[-1]] = wrong
        (tmp_path / costs.FILENAME).write_text(json.dumps(content))
        try:
            found = costs.read_costs(tmp_path)
        except UserError as error:
            messages.append(str(error))
            continue
        assert found is not None
        for variant in found.variants:
            for quantity in costs.QUANTITIES:
                values = found.quartiles(variant.name, quantity.key)
                found.ratios(variant.name, quantity.key)
                assert values is None or quantity.format(values.median)
    assert messages
    assert all("delete it, and measure again" in message for message in messages)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_names_of_runs_that_no_run_has(tmp_path: Path, name: str) -> None:
    """A ledger rebuilt from jobs.json had them, and every later command ended in a traceback."""
    assert not is_run_name(name)
    submission = tmp_path / "slurm" / "001"
    submission.mkdir(parents=True)
    job = {"run": f"runs/{name}", "nodes": 1, "processes": 1, "retries": 0}
    if name in ("", ".", "a/b"):  # whose last part is a name
        job["run"] = name if name != "a/b" else "runs/.."
    (submission / JOBS).write_text(json.dumps({"code": "", "time": 1, "jobs": [job]}))
    assert read_jobs(submission) is None
    assert rebuild(tmp_path) == {"runs": {}, "submissions": {}}
    assert not is_run_name("a\udcffb")


def test_folders_whose_names_are_no_text_are_no_runs(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    (folder / "config.yaml").touch()
    assert rebuild(tmp_path)["runs"] == {}


def test_numbers_of_64_bits() -> None:
    assert parse_json(b"1" + b"0" * 99) is not None
    assert parse_json(b"1" + b"0" * 100) is None
    assert not has_types({"a": 10**30}, {"a": int})
    assert not has_types({"a": float("inf")}, {"a": float})
    assert not is_status({"state": "running", "step": 10**30})
    assert not is_row({"step": 1, "loss": 10**30})
    assert is_row({"step": 1, "loss": float("nan")})


@pytest.mark.parametrize("job", ["", "x", "1\0", "1_2", "²"])
def test_job_that_squeue_does_not_take(tmp_path: Path, job: str) -> None:
    content = {"runs": {"a": {}}, "submissions": {"001": {"job": job, "runs": []}}}
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    assert Ledger(tmp_path).read()["submissions"] == {}


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
def test_lock_of_a_sweep_that_is_no_file(tmp_path: Path, kind: str) -> None:
    """Opening a pipe waited without end."""
    make(tmp_path / ".sweep.lock", kind)
    with pytest.raises(UserError, match=r"\.sweep\.lock: not a regular file; delete it$"), Ledger(tmp_path).update():
        pass


def test_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(tmp_path / "x") == {"a": 1}


@pytest.mark.parametrize("folder", ["/proc", "a folder in its place"])
def test_what_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str) -> None:
    """The message had the name of a temporary file, which nobody knows."""
    path = Path("/proc/x.json") if folder == "/proc" else tmp_path / "x.json"
    if folder != "/proc":
        path.mkdir()

    def write() -> int:
        with atomic_write(path) as file:
            file.write("x")
        return 0

    assert report_errors(write) == ExitCode.USER_ERROR
    assert capsys.readouterr().err.startswith(f"error: {path}: ")
    assert folder == "/proc" or list(tmp_path.iterdir()) == [path]


def test_characters_that_are_no_text() -> None:
    """A variant of a ledger had one, and `compare` could not write its tables."""
    assert files.decode_json(rb'["a\ud800b", "\ud83d\ude00", "\\ud800", 1]') == ["a?b", "\U0001f600", "\\ud800", 1]


# Calls that read files, and where they read what the package or the system wrote.
READS = {"read_text", "read_bytes", "open", "expanduser", "loads", "load"}
OWN = {
    "ops/library.py": "the package's own build record, /proc",
    "environment.py": "the package's own build record, /proc",
    "catalog.py": "the package's experiments",
    "rundir/process.py": "/proc",
    "bench/memory.py": "/proc",
    "bench/scaling.py": "/proc",
    "sweep/snapshot.py": "the package's own files",
    "sweep/workers.py": "messages of our own processes",
    "run.py": "/dev/null",
    "bench/builds.py": "the package's own sources and build record, answers of our own processes",
    "bench/build_worker.py": "requests of our own process",
    "data/images.py": "after a check of its own",
}


def test_every_file_is_opened_by_the_common_functions() -> None:
    package = Path(attnzoo.__file__).parent
    found: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        name = str(path.relative_to(package))
        if name in ("files.py", "paths.py", *OWN):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (call := _reading_call(node)):
                found.setdefault(name, set()).add(f"{call}, line {node.lineno}")
    assert not found, "use attnzoo.files, or say in OWN why not"


def _reading_call(node: ast.Call) -> str | None:
    """The name of a call that reads a file by its path, or None."""
    if isinstance(node.func, ast.Name):
        return node.func.id if node.func.id == "open" else None
    if not isinstance(node.func, ast.Attribute) or node.func.attr not in READS:
        return None
    owner = ast.unparse(node.func.value)
    modes = [a.value for a in (*node.args, *(k.value for k in node.keywords)) if isinstance(a, ast.Constant)]
    if node.func.attr in ("loads", "load"):
        return f"{owner}.{node.func.attr}" if owner in ("json", "np", "yaml", "OmegaConf") else None
    if node.func.attr == "open" and (owner == "os" or any(mode in ("w", "wb", "a", "ab", "x") for mode in modes)):
        return None
    if node.func.attr == "open" and owner in ("self", "Image", "webbrowser", "zipfile", "tarfile"):
        return None
    return f"{owner}.{node.func.attr}"
