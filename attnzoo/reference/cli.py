"""`attnzoo schema`: the JSON Schema of experiment files, or their reference as Markdown."""

import argparse
import json

from attnzoo.errors import UserError, as_options
from attnzoo.paths import argument_path, output_file


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of `attnzoo schema`."""
    parser.add_argument(
        "plugins", metavar="PLUGIN", nargs="*", default=[], help="add the attentions of a file or module"
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=argument_path, help="write into FILE (default: print)")
    parser.add_argument("--markdown", action="store_true", help="the reference of all keys as a page, not JSON")
    return parser


def main(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    if args.output is not None:
        with as_options(output="-o"):
            output_file(args.output)
    text = _page(args.plugins) if args.markdown else _schema(args.plugins)
    if args.output is None:
        print(text, end="")
        return 0
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text, encoding="utf-8")
    print(args.output)
    return 0


def _schema(plugins: list[str]) -> str:
    from attnzoo.reference.json_schema import experiment_schema

    return json.dumps(experiment_schema(plugins), indent=1, ensure_ascii=False) + "\n"


def _page(plugins: list[str]) -> str:
    from attnzoo.reference.page import reference_page

    if plugins:
        raise UserError("--markdown: the page has no plugins; leave out --markdown or the plugins")
    return reference_page()
