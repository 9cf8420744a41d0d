"""The command line of the benchmarks: `python -m attnzoo bench {ops,scaling,models,export,tables}`."""

import argparse
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnzoo.errors import UserError, as_options, unknown
from attnzoo.paths import argument_path, output_file

if TYPE_CHECKING:
    import torch

DEVICES = ("cpu", "cuda")
PLOT_FORMATS = (".png", ".pdf", ".svg")
DEFAULT_THRESHOLD = 5.0  # percent
MAX_PIXELS = 2**28  # of a batch of images


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the benchmark subcommands to a parser."""
    benchmarks = parser.add_subparsers(dest="bench", required=True, metavar="BENCHMARK")
    _add_ops(benchmarks.add_parser("ops", help="compare implementations of the operators"))
    _add_scaling(benchmarks.add_parser("scaling", help="attentions against map size, queries, points and levels"))
    _add_models(benchmarks.add_parser("models", help="compare implementations of whole models"))
    _add_export(benchmarks.add_parser("export", help="exported models beside eager mode, on the CPU"))
    _add_tables(benchmarks.add_parser("tables", help="render JSON results as Markdown"))
    return parser


def _add_ops(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(benchmark=_run_ops)
    _add_common_arguments(parser, seconds=2.0)
    for option, help_text in (
        ("operators", "operators"),
        ("cases", "input sizes; default: those not marked opt-in by --list"),
        ("patterns", "distribution of sampling points"),
        ("dtypes", "default: float32, on a GPU also float16 and bfloat16"),
        ("passes", "forward, forward+backward"),
        ("implementations", "implementations next to ours; those not installed are listed as missing"),
    ):
        default = None if option in ("cases", "dtypes") else ["all"]
        parser.add_argument(f"--{option}", nargs="+", metavar="NAME", default=default, help=f"{help_text} (or all)")
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", default=float("inf"), help="start no new measurement after SECONDS"
    )
    parser.add_argument(
        "--base", metavar="REV", help="time our operators of this commit and of the working tree instead, both built"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="PERCENT",
        help="with --base: smaller differences do not count (default: 5); exit code 1 if a measurement is slower",
    )
    parser.add_argument("--list", action="store_true", help="list operators, cases, dtypes and implementations")
    parser.add_argument("--dry-run", action="store_true", help="list the measurements")


def _add_scaling(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(benchmark=_run_scaling)
    _add_common_arguments(parser, seconds=1.0)
    parser.add_argument("--attentions", nargs="+", metavar="NAME", default=["all"], help="attentions (or all)")
    parser.add_argument("--roles", nargs="+", metavar="ROLE", default=["all"], help="encoder, decoder (or all)")
    parser.add_argument("--tokens", type=int, metavar="N", help="the largest number of tokens")
    parser.add_argument(
        "--limit", type=float, metavar="SECONDS", default=10.0, help="skip calls expected to take longer"
    )
    parser.add_argument("--plot", type=argument_path, metavar="FILE", help="plot file (png, pdf or svg)")


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(benchmark=_run_models)
    _add_common_arguments(parser, seconds=5.0)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="published models (or all)")
    parser.add_argument(
        "--forward", type=_shape, metavar="BxHxW", help="images of the forward pass, 1x800x1066 for detectors"
    )
    parser.add_argument(
        "--training", type=_shape, metavar="BxHxW", help="images of the training step, 2x256x256 for detectors"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny models, for smoke tests")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(benchmark=_run_export)
    _add_common_arguments(parser, seconds=5.0)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="presets (or all)")
    parser.add_argument("--forward", type=_shape, metavar="BxHxW", help="images, 1x800x1066 for detectors")


def _add_tables(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(benchmark=_run_tables)
    parser.add_argument("raw", metavar="RAW.json", nargs="+", type=argument_path, help="files written by --json")
    parser.add_argument("--title", default="Benchmarks", help="the title of the page")
    parser.add_argument("--out", type=argument_path, metavar="FILE.md", help="output file (default: print)")


def _add_common_arguments(parser: argparse.ArgumentParser, seconds: float) -> None:
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument("--json", type=argument_path, metavar="FILE", help="write all samples to FILE")
    parser.add_argument(
        "--seconds",
        type=float,
        default=seconds,
        help="time per comparison; at least 5 rounds (scaling: 3), even with 0",
    )


def _shape(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}: expected BxHxW, such as 1x800x1066")
    return int(match[1]), int(match[2]), int(match[3])


def main(args: argparse.Namespace) -> int:
    """Run the benchmark of parsed arguments; returns the exit code."""
    exit_code: int = args.benchmark(args)
    return exit_code


def _prepare(args: argparse.Namespace) -> "torch.device":
    """Check the common arguments and set the number of threads. Raises UserError, also for a missing device."""
    import torch

    if args.device not in DEVICES:
        raise unknown("device", args.device, DEVICES)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device cuda: torch {torch.__version__} sees no GPU")
    _check_numbers(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    _check_writable("--json", args.json)
    return torch.device(args.device)


def _check_numbers(args: argparse.Namespace) -> None:
    """Raise UserError for out-of-range numbers, NaN included."""
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads {args.threads}: must be at least 1")
    if not 0 <= args.seconds < float("inf"):
        raise UserError(f"--seconds {args.seconds:g}: must be 0 or more, and finite")
    for option in ("budget", "limit"):
        seconds = getattr(args, option, None)
        if seconds is not None and not seconds > 0:
            raise UserError(f"--{option} {seconds:g}: must be more than 0")
    for option in ("forward", "training"):
        shape = getattr(args, option, None)
        if shape is not None and min(shape) < 1:
            raise UserError(f"--{option} {'x'.join(map(str, shape))}: every number must be at least 1")
        if shape is not None:
            check_pixels(f"--{option}", shape)


def check_pixels(option: str, shape: Sequence[int]) -> None:
    """Raise UserError for images, of `shape` ([B,] H, W), that no machine has the memory for."""
    if math.prod(shape) > MAX_PIXELS:
        raise UserError(f"{option} {'x'.join(map(str, shape))}: expected at most {MAX_PIXELS:,} pixels")


def _check_writable(option: str, path: Path | None) -> None:
    """Raise UserError, before any measurement, if a file cannot be written; its folder need not exist yet."""
    if path is None:
        return
    with as_options(path=option):
        output_file(path, key="path")
    with _writing(option, path):
        existing_parent = next(folder for folder in path.absolute().parents if folder.exists())
        tempfile.TemporaryFile(dir=existing_parent).close()


@contextmanager
def _writing(option: str, path: Path) -> Iterator[None]:
    """Convert OSError to UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written ({error.strerror})") from None


def _run_ops(args: argparse.Namespace) -> int:
    device = _prepare(args)
    from attnzoo.bench.operators import benchmark
    from attnzoo.bench.operators.base import OURS
    from attnzoo.bench.select import select_names

    threshold = _threshold(args)
    if args.list:
        _list(device)
        return 0
    measurements = benchmark.plan(device, args.operators, args.cases, args.patterns, args.dtypes)
    allowed = {name for measurement in measurements for name in measurement.operator.implementations}
    implementations = select_names("implementation", [OURS, *args.implementations], sorted(allowed))
    passes = select_names("pass", args.passes, benchmark.PASSES)
    if args.dry_run:
        for measurement in measurements:
            print(measurement)
        print(f"{len(measurements)} measurements of {' and '.join(passes)}, about {args.seconds:g} s a pass or more")
        return 0
    if threshold is not None:
        from attnzoo.bench.operators import revisions

        compared = revisions.Settings(passes, args.seconds, args.budget, threshold)
        record = revisions.run(args.base, measurements, compared, _record_writer(args))
        return _finish(args, record, revisions.failures(record))
    settings = benchmark.Settings(device, passes, implementations, args.seconds, args.budget)
    record = benchmark.run(measurements, settings, _record_writer(args, len(measurements)))
    return _finish(args, record, _failed(benchmark.failures(record)))


def _threshold(args: argparse.Namespace) -> float | None:
    """The threshold of --base as a fraction; None without --base. Raises UserError for an option that does not fit."""
    if args.base is None:
        if args.threshold is not None:
            raise UserError(f"--threshold {args.threshold:g}: only with --base REV")
        return None
    percent = DEFAULT_THRESHOLD if args.threshold is None else args.threshold
    if not 0 <= percent < 100:
        raise UserError(f"--threshold {percent:g}: must be from 0 to less than 100")
    if args.device != "cpu":
        raise UserError(f"--device {args.device}: --base compares the CPU operators only")
    if args.implementations != ["all"]:
        raise UserError(f"--implementations {' '.join(args.implementations)}: not with --base, which times only ours")
    return percent / 100


def _list(device: "torch.device") -> None:
    from attnzoo.bench.operators import benchmark
    from attnzoo.bench.operators.base import DTYPES
    from attnzoo.environment import version

    print(f"dtypes {', '.join(DTYPES)}; passes {', '.join(benchmark.PASSES)}")
    for operator in benchmark.OPERATORS.values():
        print(f"{operator.name}: patterns {', '.join(operator.patterns)}")
        for name, case in operator.cases.items():
            opt_in = "" if name in operator.default_cases(device.type) else " (opt-in)"
            print(f"  case {name}: {case}{opt_in}")
        for implementation, state in benchmark.availability(operator, device):
            package = f"{implementation.package} {version(implementation.package) or 'not installed'}"
            print(f"  implementation {implementation.name} ({package}): {state}")


def _run_scaling(args: argparse.Namespace) -> int:
    device = _prepare(args)
    from attnzoo.allocator import keep_freed_memory
    from attnzoo.bench import plot, scaling
    from attnzoo.bench.select import select_names

    if args.plot and args.plot.suffix not in PLOT_FORMATS:
        raise UserError(f"--plot {args.plot}: expected a name ending in {', '.join(PLOT_FORMATS)}")
    _check_writable("--plot", args.plot)
    roles = select_names("role", args.roles, scaling.ROLES)
    names = select_names("attention", args.attentions, scaling.names())
    attentions = scaling.select_attentions(names, roles)
    tokens = scaling.TOKENS[-1] if args.tokens is None else args.tokens
    if tokens < scaling.TOKENS[0]:
        raise UserError(f"--tokens {tokens}: must be at least {scaling.TOKENS[0]}")
    limits = scaling.Limits(args.limit, tokens)
    keep_freed_memory()
    record = scaling.run(device, attentions, limits=limits, seconds=args.seconds, on_progress=_record_writer(args))
    if args.plot:
        with _writing("--plot", args.plot):
            plot.plot_scaling(record, args.plot)
    return _finish(args, record, [])


def _run_models(args: argparse.Namespace) -> int:
    device = _prepare(args)
    from attnzoo.bench.models import benchmark

    record = benchmark.run(
        device,
        args.models or benchmark.DEFAULT_MODELS,
        seconds=args.seconds,
        tiny=args.tiny,
        forward=args.forward,
        training=args.training,
        on_progress=_record_writer(args),
    )
    return _finish(args, record, _failed(benchmark.failures(record)))


def _run_export(args: argparse.Namespace) -> int:
    if _prepare(args).type != "cpu":
        raise UserError("--device cuda: exported models are timed on the CPU")
    from attnzoo.bench.models import exported

    names = args.models or exported.DEFAULT_MODELS
    record = exported.run(names, seconds=args.seconds, shape=args.forward, on_progress=_record_writer(args))
    return _finish(args, record, _failed(exported.failures(record)))


def _run_tables(args: argparse.Namespace) -> int:
    from attnzoo.bench import records
    from attnzoo.bench.tables import render_page

    _check_writable("--out", args.out)
    page = render_page({path: records.read(path) for path in args.raw}, args.title)
    if args.out is None:
        print(page)
    else:
        with _writing("--out", args.out):
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(page, encoding="utf-8")
    return 0


def _record_writer(args: argparse.Namespace, total: int | None = None) -> Callable[[dict[str, Any]], None]:
    """Writes the record and prints the progress, so that an interruption loses only the last row."""

    def on_progress(record: dict[str, Any]) -> None:
        _write(args, record)
        print(f"{len(record['rows'])}{f' of {total}' if total else ''} rows measured", flush=True)

    return on_progress


def _write(args: argparse.Namespace, record: dict[str, Any]) -> None:
    from attnzoo.bench import records

    if args.json is not None:
        with _writing("--json", args.json):
            records.write(args.json, record)


def _failed(reasons: list[str]) -> list[str]:
    return [f"FAILED: {reason}" for reason in reasons]


def _finish(args: argparse.Namespace, record: dict[str, Any], failures: list[str]) -> int:
    """Write and print a record; exit code 1 if one of our implementations failed or became slower."""
    from attnzoo.bench.tables import describe_machine, tables
    from attnzoo.console import console

    _write(args, record)
    output = console()
    output.print(describe_machine(record), soft_wrap=True)
    for table in tables(record):
        table.print(output)
    for failure in failures:
        output.print(failure, soft_wrap=True)
    return 1 if failures else 0
