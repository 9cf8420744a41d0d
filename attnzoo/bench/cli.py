"""Benchmarks from the command line: `python -m attnzoo bench {ops,scaling,models,tables}`."""

import argparse
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnzoo.errors import UserError, unknown

if TYPE_CHECKING:
    import torch

DEVICES = ("cpu", "cuda")
PICTURES = (".png", ".pdf", ".svg")
WIDTH = 180  # characters, where no terminal sets a limit


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add what the benchmarks take to a parser."""
    kinds = parser.add_subparsers(dest="bench", required=True, metavar="BENCHMARK")
    _ops(kinds.add_parser("ops", help="operators beside other implementations of them"))
    _scaling(kinds.add_parser("scaling", help="attentions against map size, points and levels"))
    _models(kinds.add_parser("models", help="whole models beside other implementations of them"))
    _tables(kinds.add_parser("tables", help="a Markdown page from raw files"))
    return parser


def _ops(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(benchmark=_run_ops)
    _common(parser, seconds=2.0)
    for option, what in (
        ("operations", "operators"),
        ("cases", "sizes of the inputs; those that --list does not mark unless given"),
        ("patterns", "where sampling points lie"),
        ("dtypes", "float32 unless given, on a GPU float16 and bfloat16 too"),
        ("passes", "forward, forward+backward"),
        ("peers", "implementations beside ours; those that are not installed are listed as missing"),
    ):
        default = None if option in ("cases", "dtypes") else ["all"]
        parser.add_argument(f"--{option}", nargs="+", metavar="NAME", default=default, help=f"{what} (or all)")
    parser.add_argument("--budget", type=float, metavar="SECONDS", default=float("inf"), help="begin nothing after it")
    parser.add_argument(
        "--list", action="store_true", help="list operators, cases, dtypes and implementations, and stop"
    )
    parser.add_argument("--dry-run", action="store_true", help="list what would be measured, and stop")


def _scaling(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(benchmark=_run_scaling)
    _common(parser, seconds=1.0)
    parser.add_argument("--attentions", nargs="+", metavar="NAME", default=["all"], help="attentions (or all)")
    parser.add_argument("--tokens", type=int, metavar="N", help="the largest map")
    parser.add_argument(
        "--limit", type=float, metavar="SECONDS", default=10.0, help="leave out calls expected to take longer"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture: png, pdf or svg")


def _models(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(benchmark=_run_models)
    _common(parser, seconds=5.0)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="published models (or all)")
    parser.add_argument(
        "--forward", type=_shape, metavar="BxHxW", help="images of the forward pass, 1x800x1066 for detectors"
    )
    parser.add_argument(
        "--training", type=_shape, metavar="BxHxW", help="images of the training step, 2x256x256 for detectors"
    )
    parser.add_argument("--tiny", action="store_true", help="models of a few layers, to try the command")


def _tables(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(benchmark=_run_tables)
    parser.add_argument("raw", metavar="RAW.json", nargs="+", type=Path, help="what --json wrote")
    parser.add_argument("--title", default="Benchmarks", help="the heading of the page")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write here instead of printing")


def _common(parser: argparse.ArgumentParser, seconds: float) -> None:
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; torch's own number unless given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples here")
    parser.add_argument(
        "--seconds",
        type=float,
        default=seconds,
        help="for each comparison, but five rounds at least (scaling: three), which 0 asks for",
    )


def _shape(text: str) -> tuple[int, int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: expected BxHxW, such as 1x800x1066")
    return int(found[1]), int(found[2]), int(found[3])


def start(given: argparse.Namespace) -> int:
    """Run what the arguments say."""
    exit_code: int = given.benchmark(given)
    return exit_code


def _prepare(given: argparse.Namespace) -> "torch.device":
    """The device, there and ready. Raises UserError for one that is not."""
    import torch

    if given.device not in DEVICES:
        raise unknown("device", given.device, DEVICES)
    if given.device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device cuda: torch {torch.__version__} sees no GPU")
    _check_numbers(given)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    _check_writable("--json", given.json)
    return torch.device(given.device)


def _check_numbers(given: argparse.Namespace) -> None:
    """Raise UserError for a number that makes no sense; comparisons are such that NaN makes none."""
    if given.threads is not None and given.threads < 1:
        raise UserError(f"--threads {given.threads}: must be at least 1")
    if not 0 <= given.seconds < float("inf"):
        raise UserError(f"--seconds {given.seconds:g}: must be 0 or more, and finite")
    for option in ("budget", "limit"):
        seconds = getattr(given, option, None)
        if seconds is not None and not seconds > 0:
            raise UserError(f"--{option} {seconds:g}: must be more than 0")
    for option in ("forward", "training"):
        shape = getattr(given, option, None)
        if shape is not None and min(shape) < 1:
            raise UserError(f"--{option} {'x'.join(map(str, shape))}: every number must be at least 1")


def _check_writable(option: str, path: Path | None) -> None:
    """Raise UserError, before anything is measured, where a file cannot be written; its folder may be missing."""
    if path is None:
        return
    with _writing(option, path):
        if path.is_dir():
            raise UserError(f"{option} {path}: cannot be written (it is a folder)")
        above = next(folder for folder in path.absolute().parents if folder.exists())
        tempfile.TemporaryFile(dir=above).close()


@contextmanager
def _writing(option: str, path: Path) -> Iterator[None]:
    """Turns what the system refuses into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written ({error.strerror})") from None


def _run_ops(given: argparse.Namespace) -> int:
    device = _prepare(given)
    from attnzoo.bench.operators import benchmark
    from attnzoo.bench.operators.peers import OURS
    from attnzoo.bench.operators.registered import OPERATIONS
    from attnzoo.bench.select import pick

    if given.list:
        _list(device)
        return 0
    measurements = benchmark.plan(device, given.operations, given.cases, given.patterns, given.dtypes)
    known = {name for operation in {m.operation.name for m in measurements} for name in OPERATIONS[operation].peers}
    peers = pick("peer", [OURS, *given.peers], sorted(known))
    passes = pick("pass", given.passes, benchmark.PASSES)
    if given.dry_run:
        for measurement in measurements:
            print(measurement)
        print(f"{len(measurements)} measurements of {' and '.join(passes)}, about {given.seconds:g} s a pass or more")
        return 0
    settings = benchmark.Settings(device, passes, peers, given.seconds, given.budget)
    record = benchmark.run(measurements, settings, _keep(given, len(measurements)))
    return _finish(given, record, benchmark.faults(record))


def _list(device: "torch.device") -> None:
    from attnzoo.bench.operators import benchmark
    from attnzoo.bench.operators.base import DTYPES
    from attnzoo.bench.operators.registered import OPERATIONS
    from attnzoo.environment import version

    print(f"dtypes {', '.join(DTYPES)}; passes {', '.join(benchmark.PASSES)}")
    for operation in OPERATIONS.values():
        print(f"{operation.name}: patterns {', '.join(operation.patterns)}")
        for name, case in operation.cases.items():
            asked = "" if name in operation.usual(device.type) else " (if asked for)"
            print(f"  case {name}: {case}{asked}")
        for peer, state in benchmark.availability(operation, device):
            print(f"  peer {peer.name} ({peer.package} {version(peer.package) or 'not installed'}): {state}")


def _run_scaling(given: argparse.Namespace) -> int:
    device = _prepare(given)
    from attnzoo.bench import plot, scaling
    from attnzoo.bench.select import pick

    if given.plot and given.plot.suffix not in PICTURES:
        raise UserError(f"--plot {given.plot}: expected a name ending in {', '.join(PICTURES)}")
    _check_writable("--plot", given.plot)
    names = pick("attention", given.attentions, scaling.grid_attentions())
    tokens = scaling.TOKENS[-1] if given.tokens is None else given.tokens
    if tokens < scaling.TOKENS[0]:
        raise UserError(f"--tokens {tokens}: the smallest map has {scaling.TOKENS[0]}")
    limits = scaling.Limits(given.limit, tokens)
    record = scaling.run(device, names, limits=limits, seconds=given.seconds, progress=_keep(given))
    if given.plot:
        with _writing("--plot", given.plot):
            plot.scaling(record, given.plot)
    return _finish(given, record, [])


def _run_models(given: argparse.Namespace) -> int:
    device = _prepare(given)
    from attnzoo.bench.models import benchmark

    record = benchmark.run(
        device,
        given.models or benchmark.USUAL,
        seconds=given.seconds,
        tiny=given.tiny,
        forward=given.forward,
        training=given.training,
        progress=_keep(given),
    )
    return _finish(given, record, benchmark.faults(record))


def _run_tables(given: argparse.Namespace) -> int:
    from attnzoo.bench.records import read
    from attnzoo.bench.tables import page

    _check_writable("--out", given.out)
    text = page({path: read(path) for path in given.raw}, given.title)
    if given.out is None:
        print(text)
    else:
        with _writing("--out", given.out):
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(text)
    return 0


def _keep(given: argparse.Namespace, total: int | None = None) -> Callable[[dict[str, Any]], None]:
    """Writes the record as it grows, so that an interruption loses the last row only, and says how far it is."""

    def keep(record: dict[str, Any]) -> None:
        _write(given, record)
        print(f"{len(record['rows'])}{f' of {total}' if total else ''} rows measured", flush=True)

    return keep


def _write(given: argparse.Namespace, record: dict[str, Any]) -> None:
    from attnzoo.bench import records

    if given.json is not None:
        with _writing("--json", given.json):
            records.write(given.json, record)


def _finish(given: argparse.Namespace, record: dict[str, Any], faults: list[str]) -> int:
    """Show and write a record; exit code 1 if what is ours is at fault in it."""
    from rich.console import Console

    from attnzoo.bench import records
    from attnzoo.bench.tables import tables

    _write(given, record)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(records.machine(record), markup=False, soft_wrap=True)
    for table in tables(record):
        table.show(console)
    for fault in faults:
        console.print(f"FAULT: {fault}", markup=False, soft_wrap=True)
    return 1 if faults else 0
