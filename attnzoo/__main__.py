"""The command `attnzoo`: training, comparison, costs, data, weights and use of models."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnzoo import run, streams
from attnzoo.bench import cli as bench_cli
from attnzoo.cost import cli as cost_cli
from attnzoo.errors import UserError, as_options, printable, printable_lines
from attnzoo.inference import draw_cli, eval_cli, export_cli, predict_cli
from attnzoo.paths import argument_path
from attnzoo.probe import cli as probe_cli
from attnzoo.reference import cli as schema_cli
from attnzoo.userdata import cli as data_cli


class _Parser(argparse.ArgumentParser):
    """Names the sub-command that got unrecognized arguments; argparse has the outermost parser report them."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        namespace, extras = super().parse_known_args(args, namespace)
        if extras:
            self.error(f"unrecognized arguments: {' '.join(extras)}")
        return namespace, extras


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of `attnzoo` and `python -m attnzoo`; returns the exit code."""
    streams.open_missing()
    argv = sys.argv[1:] if argv is None else list(argv)
    program = "attnzoo" if Path(sys.argv[0]).stem == "attnzoo" else "python -m attnzoo"
    if argv[:1] == ["run"]:  # intermixed arguments, which argparse does not support in sub-commands
        return run.main(argv[1:], f"{program} run")
    if argv[:1] in (["predict"], ["draw"], ["eval"]):
        command = {"predict": predict_cli, "draw": draw_cli, "eval": eval_cli}[argv[0]]
        args = command.add_arguments(argparse.ArgumentParser(f"{program} {argv[0]}")).parse_intermixed_args(argv[1:])
        return run.report_errors(lambda: command.main(args))
    parser = _Parser(program, description="Which attention should this vision model use?")
    commands = parser.add_subparsers(dest="command_name", required=True, metavar="COMMAND")
    commands.add_parser("run", help="train what an experiment file describes")
    status = commands.add_parser("status", help="show the status of a sweep")
    status.add_argument("folder", metavar="RUNS_DIR", type=argument_path, help="the folder of a sweep")
    status.add_argument("--watch", action="store_true", help="refresh until no run is active")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(command=_status)
    cancel = commands.add_parser("cancel", help="stop the runs of a sweep; they save first")
    cancel.add_argument("folder", metavar="RUNS_DIR", type=argument_path, help="the folder of a sweep")
    cancel.add_argument("runs", metavar="RUN", nargs="*", default=[], help="run names (default: all)")
    cancel.set_defaults(command=_cancel)
    compare = commands.add_parser("compare", help="compare finished runs: means, intervals, cost")
    compare.add_argument("folders", metavar="RUNS_DIR", nargs="+", type=argument_path, help="a folder of runs")
    compare.add_argument("--baseline", metavar="NAME", help="the variant that others are compared with")
    compare.add_argument("--margin", type=_positive, help="differences of the primary metric that do not matter")
    compare.add_argument("--target", metavar="SCORE", type=_number, help="the score whose steps are compared")
    compare.add_argument("--save", metavar="DIR", type=argument_path, help="keep the tables and the raw results in DIR")
    compare.add_argument("--html", metavar="FILE", type=argument_path, help="also write a page with plots into FILE")
    formats = compare.add_mutually_exclusive_group()
    for name in ("JSON", "CSV", "Markdown"):
        formats.add_argument(f"--{name.lower()}", action="store_true", help=f"print {name} instead, and keep nothing")
    compare.set_defaults(command=_compare)
    check = commands.add_parser(
        "check",
        help="check an attention against the contract",
        usage=f"{program} check [-h] [-v] FILE.py|NAME [NAME] [option=value …]",
    )
    check.add_argument("target", metavar="FILE.py|NAME", help="a file with attentions, or the name of a registered one")
    check.add_argument(
        "words", metavar="NAME|option=value", nargs="*", default=[], help="one of the file's; options as points=8"
    )
    check.add_argument("-v", "--verbose", action="store_true", help="show tracebacks, warnings and logs")
    check.set_defaults(command=_check)
    probe = commands.add_parser("probe", help="show what an attention can do, on synthetic probes")
    probe_cli.add_arguments(probe).set_defaults(command=probe_cli.main)
    cost = commands.add_parser("cost", help="count and measure what models cost, without training")
    cost_cli.add_arguments(cost).set_defaults(command=cost_cli.main)
    bench = bench_cli.add_arguments(commands.add_parser("bench", help="benchmark operators, attentions and models"))
    bench.set_defaults(command=bench_cli.main)
    list_ = commands.add_parser("list", help="list attentions, models, data sets and augmentations, or describe one")
    list_.add_argument("name", metavar="NAME", nargs="?", help="describe this one; a pattern such as 'dat*' lists")
    list_.add_argument("--ops", action="store_true", help="list the operators' backends instead")
    list_.set_defaults(command=_list)
    schema = commands.add_parser("schema", help="print the JSON Schema of experiment files, for editors")
    schema_cli.add_arguments(schema).set_defaults(command=schema_cli.main)
    weights = commands.add_parser("weights", help="say what a file of weights is, which preset fits, what is loaded")
    weights.add_argument(
        "path", metavar="FILE", type=argument_path, help="a file, a run folder or a Hugging Face folder"
    )
    weights.add_argument("--source", metavar="NAME", default="auto", help="of its names (default: told from the keys)")
    weights.set_defaults(command=_weights)
    data = commands.add_parser("data", help="say what is in a data set before training, or convert it")
    data_cli.add_data_arguments(data).set_defaults(command=data_cli.data)
    new = commands.add_parser("new", help="write an experiment file for a data set of your own")
    data_cli.add_new_arguments(new).set_defaults(command=data_cli.new)
    commands.add_parser("predict", help="objects or classes in images: COCO JSON and annotated pictures")
    commands.add_parser("eval", help="COCO metrics of a detector, or the accuracy of a classifier")
    commands.add_parser("draw", help="what queries of a trained model attend to: a figure or an interactive page")
    export = commands.add_parser("export", help="write a model as ONNX or as a program of torch.export")
    export_cli.add_arguments(export).set_defaults(command=export_cli.main)
    args = parser.parse_args(argv)
    return run.report_errors(lambda: args.command(args))


def _number(text: str, lowest: float = -math.inf, expected: str = "a number") -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not lowest < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text}")
    return value


def _positive(text: str) -> float:
    return _number(text, 0, "a positive number")


def _status(args: argparse.Namespace) -> int:
    from attnzoo.report.status_table import print_status

    return print_status(args.folder, args.watch, args.json)


def _cancel(args: argparse.Namespace) -> int:
    from attnzoo.sweep.cancel import cancel

    for line in cancel(args.folder, args.runs):
        print(printable(line))
    return 0


def _compare(args: argparse.Namespace) -> int:
    from attnzoo.report.compare import compare
    from attnzoo.report.page.write import write_page
    from attnzoo.report.records import LEFT_OUT
    from attnzoo.report.runs import RESULTS
    from attnzoo.report.summary import save, write_outputs
    from attnzoo.report.table import markdown, print_comparison, to_csv, to_json

    comparison = compare(args.folders, args.baseline, args.margin, args.target)
    code = int(any(note.startswith(LEFT_OUT) for note in comparison.notes))
    if args.html is not None:
        try:
            write_page(comparison, args.html)
        except OSError as error:
            raise UserError(f"--html {args.html}: {error.strerror}") from None
    printers = {"json": to_json, "csv": to_csv, "markdown": markdown}
    chosen = next((printer for name, printer in printers.items() if getattr(args, name)), None)
    if chosen is not None:
        print(chosen(comparison).rstrip("\n"))
        return code
    print_comparison(comparison)
    if args.save is not None:
        for path in save(args.folders, comparison, args.save):
            print(path)
    elif len(args.folders) == 1 and not (args.folders[0] / RESULTS).exists():
        try:
            write_outputs(comparison, args.folders[0])
        except OSError as error:  # such as the runs of a colleague
            print(f"{args.folders[0]}: the comparison was not written ({error.strerror})", file=sys.stderr)
    return code


def _check(args: argparse.Namespace) -> int:
    from attnzoo.contract.command import check_attentions

    return check_attentions(args.target, args.words, args.verbose)


def _weights(args: argparse.Namespace) -> int:
    from attnzoo.inference.weights import describe_weights

    with as_options(source="--source"):
        print(printable_lines(str(describe_weights(args.path, args.source))))
    return 0


def _list(args: argparse.Namespace) -> int:
    if args.ops:
        from attnzoo import ops

        for name, state in ops.backends().items():
            print(f"{name}: {state}")
        return 0
    from attnzoo import catalog

    if args.name is None:
        for kind, names in catalog.names().items():
            print(f"{kind}s: {', '.join(names)}")
        return 0
    entries = catalog.find(args.name)
    if {entry.name for entry in entries} == {entries[0].name}:
        print("\n\n".join(map(str, entries)))
    else:
        print("\n".join(f"{entry.name} ({entry.kind}): {entry.summary}" for entry in entries))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run.restart_under_torchrun()
    sys.exit(main())
