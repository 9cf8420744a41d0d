"""Build, test and measure on a GPU with one command: `make gpu OUT=folder [WHEELS=folder]`.

Needs Python 3.11 or later with a CUDA torch 2.11 or later, nvcc, what pyproject.toml lists, and no network: packages
that are missing, peers among them, come from a folder of wheels and source archives and go into a temporary folder.
Where compute-sanitizer is found, some of the CUDA tests run under it too; where it is not, the summary says so.
Everything ends within --minutes: a step that runs out of its time is stopped, and the rest goes on. OUT receives the
raw JSON of every benchmark, their tables (operators.md), the plot of scaling, log.txt, and summary.json.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST_TORCH = (2, 11)
ARCHIVES = (".whl", ".tar.gz")
BUILD, TESTS = "build", "tests"
SANITIZER, CHECKS = "compute-sanitizer", ("memcheck", "racecheck")
# Small ones that reach the branches of the kernels, because every launch is slowed down.
SANITIZED = ("wider_than_a_warp", "not_aligned", "levels", "rows_of_a_map", "hidden_keys_are")
NOT_RUN = "NOT RUN"
RAW = PLAIN, OTHERS, MODELS, SCALING = "ops", "ops-fused-and-dat", "models", "scaling"


@dataclass(frozen=True)
class Step:
    """A command and the seconds it may take."""

    name: str
    command: list[str]
    seconds: float


@dataclass(frozen=True)
class Result:
    """How a step ended: "done", "failed with exit code …", "stopped after … s", "NOT RUN: …"."""

    name: str
    state: str
    seconds: float
    output: str


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("tools/gpu.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for what is measured")
    parser.add_argument("--wheels", type=Path, help="folder of wheels and source archives to install")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the command")
    parser.add_argument("--tiny", action="store_true", help="the smallest case of everything, to try the command")
    parser.add_argument("--minutes", type=float, default=7.25, help="for everything together")
    return parser


def missing(device: str) -> str | None:
    """What this machine lacks, in one line; None where it can start."""
    if importlib.util.find_spec("torch") is None:
        return f"torch is not installed for {sys.executable}"
    import torch

    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        return f"torch {torch.__version__} is too old: 2.11 or later is needed"
    if device == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU: this needs a machine with one (--device cpu tries the command)"
    return None


def build_step() -> Step:
    return Step(BUILD, [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], 240)


def find_sanitizer(packages: Path) -> str | None:
    """compute-sanitizer on PATH, beside nvcc, or from NVIDIA's package among the installed ones or in `packages`."""
    toolkits = [os.path.join(os.environ[name], "bin") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    beside = [str(Path(nvcc).resolve().parent)] if (nvcc := shutil.which("nvcc")) else []
    packaged = [str(Path(slot, "nvidia", "cu13", "bin")) for slot in (packages, sysconfig.get_path("purelib"))]
    folders = [os.environ.get("PATH", ""), *toolkits, *beside, *packaged]
    return shutil.which(SANITIZER, path=os.pathsep.join(folders))


def check_steps(sanitizer: str) -> list[Step]:
    """Some of the kernels' tests under each of CHECKS, which looks at our kernels alone."""
    tests = ["tests/ops/test_cuda_kernels.py", "tests/ops/test_cuda_deform_kv.py"]
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-k", " or ".join(SANITIZED), *tests]
    options = ["--error-exitcode", "9", "--report-api-errors", "no", "--kernel-name", "kns=attnzoo"]
    # Memory that torch keeps for later tensors would hide what goes beyond one.
    plain = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", sanitizer]
    return [Step(check, [*plain, "--tool", check, *options, *pytest], 40) for check in CHECKS]


def steps(device: str, tiny: bool, out: Path, sanitizer: str | None) -> list[Step]:
    """What follows the build, most important first."""

    def bench(name: str, verb: str, seconds: float, *options: str) -> Step:
        command = [sys.executable, "-m", "attnzoo", "bench", verb, "--device", device]
        return Step(name, [*command, "--json", str(out / f"{name}.json"), *options], seconds)

    tests = ["-m", "cuda"] if device == "cuda" else ["tests/ops/test_calls.py"]
    plain, others = ["ms_deform_attn"], ["deform_kv_attention", "ms_deform_attn_fused", "deform_kv_attention_mlp"]
    ops, models, scaling = ["--seconds", "0.1"], ["--seconds", "1"], ["--seconds", "0.2", "--limit", "1"]
    if tiny:
        others, tests = ["ms_deform_attn_fused"], ["tests/ops/test_calls.py"]
        ops += ["--cases", "decoder-b1", "--patterns", "local", "--dtypes", "float32", "--passes", "forward"]
        models += ["--tiny", "--models", "detr_r50", "--forward", "1x64x96", "--training", "1x64x64"]
        scaling += ["--tokens", "1024", "--attentions", "ms_deform"]
    return [
        Step(TESTS, [sys.executable, "-m", "pytest", "-q", "--continue-on-collection-errors", *tests], 90),
        bench(PLAIN, "ops", 150, *ops, "--budget", "120", "--operations", *plain),
        bench(OTHERS, "ops", 90, *ops, "--budget", "70", "--operations", *others),
        bench(MODELS, "models", 60, *models),
        bench(SCALING, "scaling", 60, *scaling, "--plot", str(out / "scaling.png")),
        *(check_steps(sanitizer) if sanitizer else []),
    ]


def tables_step(out: Path) -> Step:
    raw = [str(path) for name in RAW if (path := out / f"{name}.json").exists()]
    page = ["--title", "Operators", "--out", str(out / "operators.md")]
    return Step("tables", [sys.executable, "-m", "attnzoo", "bench", "tables", *raw, *page], 30)


def install_steps(wheels: Path | None, target: Path) -> list[Step]:
    """One command per archive, so that one that cannot be installed costs no other; sources, which compile, last."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    pip += ["--no-build-isolation", "--upgrade", "--target", str(target)]
    found = sorted(wheels.iterdir()) if wheels else []
    archives = [path for ending in ARCHIVES for path in found if path.name.endswith(ending)]
    return [Step(f"install {path.name}", [*pip, str(path)], 150) for path in archives]


def environment(device: str, packages: Path) -> dict[str, str]:
    """Packages from the folder come first; the build must have CUDA, or must not."""
    found = [str(packages), str(ROOT), os.environ.get("PYTHONPATH", "")]
    cuda = "1" if device == "cuda" else "0"
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, found)), "ATTNZOO_CUDA": cuda}


def run(step: Step, deadline: float, variables: dict[str, str]) -> Result:
    """Run a step; it and all it started are stopped after its seconds, or at the deadline (of time.monotonic)."""
    begun = time.monotonic()
    allowed = min(step.seconds, deadline - begun)
    if allowed <= 0:
        return Result(step.name, "not begun: out of time", 0, "")
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(allowed)
            state = "done" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            state = f"stopped after {allowed:.3g} s"
        log.seek(0)
        return Result(step.name, state, time.monotonic() - begun, log.read())


def prepare(given: argparse.Namespace, packages: Path, deadline: float, variables: dict[str, str]) -> list[Result]:
    """The build, with the installation of the archives beside it."""
    with ThreadPoolExecutor(2) as pool:
        built = pool.submit(run, build_step(), deadline, variables)
        installed = pool.submit(
            lambda: [run(step, deadline, variables) for step in install_steps(given.wheels, packages)]
        )
        return [built.result(), *installed.result()]


def report(results: Sequence[Result], out: Path) -> None:
    """Write log.txt and summary.json as far as things are."""
    (out / "log.txt").write_text("".join(f"==== {r.name}: {r.state}\n{r.output}\n" for r in results))
    summary = [{key: value for key, value in asdict(result).items() if key != "output"} for result in results]
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


def is_failure(result: Result) -> bool:
    """Whether something that this command is for was not done; packages and the sanitizer's time are beside it."""
    if result.name in CHECKS:
        return result.state.startswith("failed")
    return result.state != "done" and not result.name.startswith("install ")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 if everything was done, 1 if a step was not, 2 if this machine cannot start."""
    given = arguments().parse_args(argv)
    lacking = missing(given.device)
    if lacking is None and given.wheels and not given.wheels.is_dir():
        lacking = f"--wheels {given.wheels}: no such folder"
    if lacking is None and given.out.exists() and not given.out.is_dir():
        lacking = f"--out {given.out}: not a folder"
    if lacking:
        print(f"error: {lacking}", file=sys.stderr)
        return 2
    deadline = time.monotonic() + 60 * given.minutes
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        variables = environment(given.device, Path(folder))
        results = prepare(given, Path(folder), deadline, variables)
        sanitizer = find_sanitizer(Path(folder)) if given.device == "cuda" else None
        if sanitizer is None:
            why = f"{SANITIZER} was not found" if given.device == "cuda" else "this is no GPU"
            results += [Result(check, f"{NOT_RUN}: {why}", 0, "") for check in CHECKS]
        for step in steps(given.device, given.tiny, out, sanitizer):
            report(results, out)
            results.append(run(step, deadline, variables))
            print(f"{results[-1].name}: {results[-1].state}", flush=True)
        results.append(run(tables_step(out), time.monotonic() + 30, variables))
    report(results, out)
    for result in results:
        print(f"{result.seconds:6.1f} s  {result.name}: {result.state}")
    print(f"written to {out}")
    return int(any(is_failure(result) for result in results))


if __name__ == "__main__":
    sys.exit(main())
