"""`attnzoo probe`: what an attention can do. Imports torch when it runs."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnzoo.errors import COMMAND_LINE, ExitCode, UserError, as_yaml, unknown
from attnzoo.paths import argument_path, real_path, user_path

if TYPE_CHECKING:
    from attnzoo.bench.tables import TextTable
    from attnzoo.probe.profile import ProbeScore

EXPERIMENT = "experiments/base/probes.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the arguments of the command; returns the parser."""
    parser.add_argument(
        "target", metavar="NAME|FILE.py|RUNS_DIR", help="a registered attention, a file with one, or finished runs"
    )
    parser.add_argument(
        "words", metavar="NAME|option=value", nargs="*", default=[], help="one of the file's; options as points=8"
    )
    parser.add_argument("--probes", metavar="PROBE,…", help="only these (default: all eight)")
    parser.add_argument("--seeds", metavar="SEED,…", default="0", help="seeds of runs (default: 0)")
    parser.add_argument("--heads", metavar="N", type=int, help="attention heads (default: 4)")
    parser.add_argument("--steps", metavar="N", type=int, help="training steps (default: 400)")
    parser.add_argument("--output", metavar="DIR", help="where the folder of the runs is made (default: runs)")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=argument_path,
        help="write a heat map, or curves over difficulty: png, pdf or svg",
    )
    return parser


def main(args: argparse.Namespace) -> int:
    """Train an attention on probes, or read finished runs, and print its profile. Returns the exit code.

    Raises UserError for invalid arguments, before anything is trained.
    """
    if args.plot is not None:
        from attnzoo.probe.plot import check_path

        check_path(args.plot)
    from attnzoo.attention import ATTENTIONS

    folder, code = user_path(args.target), int(ExitCode.OK)
    if args.target in ATTENTIONS.names() or not folder.is_dir():
        folder, code = _train(args)
        if code not in (ExitCode.OK, ExitCode.FAILED):
            return code
    elif args.words:
        raise UserError(f"{COMMAND_LINE}: {args.words[0]!r}: finished runs take no names and options")
    from attnzoo.console import console
    from attnzoo.probe.profile import read_profile

    profile = read_profile([folder])
    profile_table(profile).print(console())
    if args.plot is not None:
        from attnzoo.probe.plot import plot

        plot(profile, args.plot)
        print(args.plot)
    return code


def profile_table(profile: Sequence["ProbeScore"]) -> "TextTable":
    """One row for each attention and probe."""
    from attnzoo.bench.tables import DASH, TextTable
    from attnzoo.probe.profile import SHARE

    several = len({score.attention for score in profile}) > 1
    header = ("probe", "what it needs", "accuracy", "chance", "ceiling", "steps to 90 %", "MFLOPs", "s", "seeds")
    rows = [
        (
            *([score.attention] if several else []),
            score.label,
            score.capability,
            f"{score.score:.3f}",
            f"{score.chance:.3f}",
            f"{score.ceiling:.3f}",
            DASH if score.steps is None else f"{score.steps:.0f}",
            f"{score.mflops:.2f}",
            DASH if score.seconds is None else f"{score.seconds:.1f}",
            str(len(score.scores)),
        )
        for score in profile
    ]
    notes = (
        f"Accuracy: mean over seeds. Steps to {SHARE:.0%} of the way from chance to the ceiling: median, {DASH} if not "
        "reached. MFLOPs: million multiply-accumulates for one map with its queries. s: duration of a run.",
    )
    title = "Profiles" if several else f"Profile of {profile[0].attention}"
    columns = ("attention", *header) if several else header
    return TextTable(title, columns, rows, 3 if several else 2, notes)


def _train(args: argparse.Namespace) -> tuple[Path, int]:
    """Run the probes of one attention; returns the folder of the runs and the exit code."""
    from attnzoo.attention import ATTENTIONS
    from attnzoo.sweep.run import run

    name, plugins = _attention(args.target, [word for word in args.words if "=" not in word])
    options = dict(_parse_option(word) for word in args.words if "=" in word)
    if "level" in ATTENTIONS.options(name):
        options = {"level": 0} | options
    ATTENTIONS.check(name, options)
    role = next(role for role in ("decoder", "encoder", "stage") if role in ATTENTIONS.get(name).roles)
    chosen = _probes(args.probes, role)
    parts = [name, *(f"{key}={value}" for key, value in options.items() if (key, value) != ("level", 0))]
    parts += [f"heads={args.heads}"] if args.heads is not None else []
    sweep = "probe_" + re.sub(r"[^\w.=,+-]", "", "-".join(parts))
    output = args.output or "runs"
    overrides = [
        f"name={sweep}",
        f"output={as_yaml(output)}",
        f"plugins={as_yaml(plugins)}",
        f"model.attention={as_yaml({'name': name, **options})}",
        f"model.role={role}",
        f"sweep.zip={as_yaml(chosen)}",
        f"sweep.seeds={as_yaml(_seeds(args.seeds))}",
        *([f"model.heads={args.heads}"] if args.heads is not None else []),
        *([f"train.steps={args.steps}"] if args.steps is not None else []),
        *(["data.batch_size=2"] if role != "decoder" else []),  # all 400 pixels are queries
    ]
    return Path(output) / sweep, run(EXPERIMENT, overrides)


def _attention(target: str, words: Sequence[str]) -> tuple[str, list[str]]:
    """The name of the attention, and the plugin that registers it, if any."""
    from attnzoo.attention import ATTENTIONS, load_plugin

    if len(words) > 1:
        raise UserError(f"{COMMAND_LINE}: expected one NAME, got {', '.join(words)}")
    if not target.endswith(".py"):
        if words:
            raise UserError(f"{COMMAND_LINE}: {words[0]!r}: expected option=value")
        if target not in ATTENTIONS.names():
            hint = "a file is given by its path, ending in .py"
            raise UserError(f"{unknown('attention', target, ATTENTIONS.names())}; {hint}")
        return target, []
    names = load_plugin(target)
    if words and words[0] not in names:
        raise unknown("attention", words[0], names).at(target)
    if not words and len(names) > 1:
        raise UserError(f"{target}: registers {', '.join(names)}: name one of them")
    return (words[0] if words else names[0]), [str(real_path(target))]


def _parse_option(word: str) -> tuple[str, Any]:
    from attnzoo.schema import yaml12

    option, _, value = word.partition("=")
    if not re.fullmatch(r"[A-Za-z_]\w*", option):
        raise UserError(f"{COMMAND_LINE}: expected option=value, such as points=8, not {word!r}")
    return option, yaml12.parse_value(value, f"{COMMAND_LINE}: {option}")


def _probes(names: str | None, role: str) -> Mapping[str, list[Any]]:
    """The keys that differ between the chosen probes, as in the experiment file; a stage has one level."""
    from attnzoo.config.load import Experiment

    swept = Experiment(EXPERIMENT, ["name=probe"]).config().sweep.zip
    known = [dataset["name"] for dataset in swept["data.dataset"]]
    chosen = known if names is None else names.split(",")
    for name in chosen:
        if name not in known:
            raise unknown("probe", name, known).at("--probes")
    rows = [index for index, name in enumerate(known) if name in chosen]
    values = {key: [items[row] for row in rows] for key, items in swept.items()}
    return values | ({"model.levels": [1] * len(rows)} if role == "stage" else {})


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text}: expected whole numbers, such as 0,1,2") from None
    return seeds
