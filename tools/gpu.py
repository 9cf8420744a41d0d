"""Build, test and benchmark on a GPU with one command: `make gpu OUT=folder [WHEELS=folder]`.

Needs Python 3.11 or later with a CUDA torch 2.11 or later, nvcc, the dependencies in pyproject.toml, and no network:
missing packages, also of other implementations, are installed from a folder of wheels and sdists into a temporary
folder. If compute-sanitizer is found, some CUDA tests run under it too; otherwise the summary says NOT RUN.
Everything ends within --minutes: steps are killed at their timeout; the rest continue. OUT receives the JSON of every
benchmark, their tables (operators.md), the scaling plot, log.txt and summary.json.
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
MIN_TORCH = (2, 11)
ARCHIVES = (".whl", ".tar.gz")
BUILD, TESTS, TABLES = "build", "tests", "tables"
RAW = MSDA, DAT, MODELS, OTHER_OPS, SCALING = "ops", "ops-dat", "models", "ops-others", "scaling"
MSDA_CASES = [f"encoder-{size}-b{batch}" for size in ("800x1066", "800x1333") for batch in (1, 2, 4)]
MSDA_CASES += ["decoder-b4", "decoder-b1"]
MSDA_PEERS = ["grid_sample", "torch-ms-deform-attn", "deformops-triton", "deformops-cuda"]
DAT_CASES = ["stage1-800x1333-b1", "stage3-224-b8"]  # few, because flex_attention is compiled for each
OTHER_OPERATORS = ["ms_deform_attn_fused", "deform_kv_attn_mlp", "window_attn", "neighborhood_attn", "decoder_values"]
OTHER_CASES = ["encoder-800x1066-b1", "decoder-b4", "stage3-224-b8", "swin-t-stage-1-shifted-b4"]
OTHER_CASES += ["dat-pp-t-stage-1-b4", "detection-50x67", "queries-300-800x1066", "queries-300-256x256"]
SANITIZER, SANITIZER_TOOLS = "compute-sanitizer", ("memcheck", "racecheck")
# Small tests that reach the branches of the kernels: the sanitizer slows down every launch.
SANITIZED_TESTS = ("wider_than_a_warp", "unaligned_rows", "levels", "queries_on_a_grid", "masked_keys_are")
CUDA_TESTS = ("tests/ops", "tests/engine/test_cuda_graphs.py", "tests/bench/test_cuda_graphs.py")
NOT_RUN = "NOT RUN"


@dataclass(frozen=True)
class Step:
    """A command and its timeout in seconds."""

    name: str
    command: list[str]
    seconds: float


@dataclass(frozen=True)
class Result:
    """The state of a step: "done", "failed with exit code …", "killed after … s", "skipped: …" or "NOT RUN: …"."""

    name: str
    state: str
    seconds: float
    output: str


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("tools/gpu.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--wheels", type=Path, help="folder of wheels and sdists to install")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: smoke test")
    parser.add_argument("--tiny", action="store_true", help="the smallest case of everything: smoke test")
    parser.add_argument("--minutes", type=float, default=7.25, help="total time limit")
    return parser


def unmet_requirement(args: argparse.Namespace) -> str | None:
    """Why the command cannot start, in one line; else None."""
    if args.wheels and not args.wheels.is_dir():
        return f"--wheels {args.wheels}: no such folder"
    if args.out.exists() and not args.out.is_dir():
        return f"--out {args.out}: not a folder"
    if importlib.util.find_spec("torch") is None:
        return f"torch is not installed for {sys.executable}"
    import torch

    if tuple(map(int, torch.__version__.split(".")[:2])) < MIN_TORCH:
        return f"torch {torch.__version__} is too old: 2.11 or later is needed"
    if args.device == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU (--device cpu is a smoke test without one)"
    return None


def build_step() -> Step:
    return Step(BUILD, [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], 240)


def install_steps(wheels: Path | None, target: Path) -> list[Step]:
    """One pip call per archive, so that a failure does not affect the others; sdists last, because they compile."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    pip += ["--no-build-isolation", "--upgrade", "--target", str(target)]
    files = sorted(wheels.iterdir()) if wheels else []
    archives = [path for suffix in ARCHIVES for path in files if path.name.endswith(suffix)]
    return [Step(f"install {path.name}", [*pip, str(path)], 150) for path in archives]


def find_sanitizer(packages: Path) -> str | None:
    """compute-sanitizer on PATH, in the CUDA toolkit, next to nvcc, or in NVIDIA's pip package."""
    toolkits = [os.path.join(os.environ[name], "bin") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc_dir = [str(Path(nvcc).resolve().parent)] if (nvcc := shutil.which("nvcc")) else []
    pip_dirs = [str(Path(site, "nvidia", "cu13", "bin")) for site in (packages, sysconfig.get_path("purelib"))]
    folders = [os.environ.get("PATH", ""), *toolkits, *nvcc_dir, *pip_dirs]
    return shutil.which(SANITIZER, path=os.pathsep.join(folders))


def sanitizer_steps(sanitizer: str) -> list[Step]:
    """Some kernel tests under each of SANITIZER_TOOLS, limited to our kernels."""
    tests = ["tests/ops/test_cuda_kernels.py", "tests/ops/test_cuda_deform_kv_attn.py"]
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-k", " or ".join(SANITIZED_TESTS), *tests]
    options = ["--error-exitcode", "9", "--report-api-errors", "no", "--kernel-name", "kns=attnzoo"]
    # torch's caching allocator would hide accesses beyond the end of a tensor
    uncached = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", sanitizer]
    return [Step(tool, [*uncached, "--tool", tool, *options, *pytest], 40) for tool in SANITIZER_TOOLS]


def steps(device: str, tiny: bool, out: Path, sanitizer: str | None) -> list[Step]:
    """The steps after the build, most important first."""

    def bench(name: str, verb: str, seconds: float, *options: str) -> Step:
        command = [sys.executable, "-m", "attnzoo", "bench", verb, "--device", device]
        return Step(name, [*command, "--json", str(out / f"{name}.json"), *options], seconds)

    tests = [*parallel_pytest(), "-m", "cuda", *CUDA_TESTS] if device == "cuda" else ["tests/ops/test_arguments.py"]
    ops = ["--seconds", "0.05"]
    msda = [*ops, "--operators", "ms_deform_attn", "--cases", *MSDA_CASES]
    msda += ["--implementations", "attnzoo", *MSDA_PEERS, "--budget", "100"]
    dat = [*ops, "--operators", "deform_kv_attn", "--cases", *DAT_CASES]
    dat += ["--dtypes", "float32", "bfloat16", "--budget", "45"]
    others = [*ops, "--operators", *OTHER_OPERATORS, "--cases", *OTHER_CASES]
    others += ["--dtypes", "float32", "bfloat16", "--patterns", "local", "displaced", "random", "--budget", "40"]
    models = ["--seconds", "1", "--models", "deformable_detr_r50", "dat_tiny", "detr_r50"]
    scaling = ["--seconds", "0.2", "--limit", "1", "--roles", "encoder"]
    if tiny:
        tests = ["tests/ops/test_arguments.py"]
        smallest = [*ops, "--dtypes", "float32", "--passes", "forward"]
        msda = [*smallest, "--operators", "ms_deform_attn", "--cases", "decoder-b1", "--patterns", "local"]
        dat = [*smallest, "--operators", "deform_kv_attn", "--cases", "stage4-224-b8"]
        others = [*smallest, "--operators", "ms_deform_attn_fused", "--cases", "decoder-b1", "--patterns", "local"]
        models += ["--tiny", "--models", "detr_r50", "--forward", "1x64x96", "--training", "1x64x64"]
        scaling += ["--tokens", "1024", "--attentions", "ms_deform"]
    return [
        Step(TESTS, [sys.executable, "-m", "pytest", "-q", *tests], 90),
        bench(MSDA, "ops", 120, *msda),
        bench(DAT, "ops", 75, *dat),
        bench(MODELS, "models", 75, *models),
        bench(OTHER_OPS, "ops", 60, *others),
        *(sanitizer_steps(sanitizer) if sanitizer else []),
        bench(SCALING, "scaling", 60, *scaling, "--plot", str(out / "scaling.png")),
    ]


def parallel_pytest() -> list[str]:
    """Options of pytest-xdist, if it is installed: the tests take a minute in one process."""
    return ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []


def tables_step(out: Path) -> Step:
    raw = [str(path) for name in RAW if (path := out / f"{name}.json").exists()]
    page = ["--title", "Operators", "--out", str(out / "operators.md")]
    return Step(TABLES, [sys.executable, "-m", "attnzoo", "bench", "tables", *raw, *page], 30)


def environment(device: str, packages: Path) -> dict[str, str]:
    """Environment variables of all steps: `packages` first on the path, and a build with or without CUDA."""
    paths = [str(packages), str(ROOT), os.environ.get("PYTHONPATH", "")]
    cuda = "1" if device == "cuda" else "0"
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "ATTNZOO_CUDA": cuda}


def run(step: Step, deadline: float, variables: dict[str, str]) -> Result:
    """Run a step; its process group is killed at its timeout or at `deadline` (of time.monotonic)."""
    start_time = time.monotonic()
    timeout = min(step.seconds, deadline - start_time)
    if timeout <= 0:
        return Result(step.name, "skipped: out of time", 0, "")
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout)
            state = "done" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            state = f"killed after {timeout:.3g} s"
        log.seek(0)
        return Result(step.name, state, time.monotonic() - start_time, log.read())


def build_and_install(wheels: Path | None, packages: Path, deadline: float, variables: dict[str, str]) -> list[Result]:
    """Build the operators and, at the same time, install the archives."""
    with ThreadPoolExecutor(2) as pool:
        built = pool.submit(run, build_step(), deadline, variables)
        installed = pool.submit(lambda: [run(step, deadline, variables) for step in install_steps(wheels, packages)])
        return [built.result(), *installed.result()]


def write_report(results: Sequence[Result], out: Path) -> None:
    """Write log.txt and summary.json of the steps so far."""
    (out / "log.txt").write_text("".join(f"==== {r.name}: {r.state}\n{r.output}\n" for r in results))
    summary = [{key: value for key, value in asdict(result).items() if key != "output"} for result in results]
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


def is_failure(result: Result) -> bool:
    """Whether a required step failed; optional installs and sanitizer timeouts do not count."""
    if result.name in SANITIZER_TOOLS:
        return result.state.startswith("failed")
    return result.state != "done" and not result.name.startswith("install ")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 if every required step is done, 1 if one is not, 2 if the command cannot start."""
    args = make_parser().parse_args(argv)
    if error := unmet_requirement(args):
        print(f"error: {error}", file=sys.stderr)
        return 2
    deadline = time.monotonic() + 60 * args.minutes
    out, wheels = args.out.resolve(), args.wheels and args.wheels.resolve()  # steps run in the repository
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        packages = Path(folder)
        variables = environment(args.device, packages)
        results = build_and_install(wheels, packages, deadline, variables)
        sanitizer = find_sanitizer(packages) if args.device == "cuda" else None
        if sanitizer is None:
            reason = f"{SANITIZER} was not found" if args.device == "cuda" else "no GPU"
            results += [Result(tool, f"{NOT_RUN}: {reason}", 0, "") for tool in SANITIZER_TOOLS]
        for step in steps(args.device, args.tiny, out, sanitizer):
            write_report(results, out)
            results.append(run(step, deadline, variables))
            print(f"{results[-1].name}: {results[-1].state}", flush=True)
        results.append(run(tables_step(out), time.monotonic() + 30, variables))
    write_report(results, out)
    for result in results:
        print(f"{result.seconds:6.1f} s  {result.name}: {result.state}")
    print(f"results in {out}")
    return int(any(is_failure(result) for result in results))


if __name__ == "__main__":
    sys.exit(main())
