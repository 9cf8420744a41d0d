"""`attnzoo eval`: the COCO metrics of a detector, or the accuracy of a classifier, on a data set."""

import argparse
import json
import math
import sys
from collections.abc import Mapping

from attnzoo.errors import UserError, plural, printable
from attnzoo.inference import options

EXAMPLES = """examples:
  attnzoo eval runs/ablate_points/points=4-seed=1000
  attnzoo eval r50_deformable_detr-checkpoint.pth data.dataset.root=/data/coco --per-class
"""
TITLES = {
    "AP": "mean over IoU 0.50 to 0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "AP_S": "of small objects",
    "AP_M": "of medium objects",
    "AP_L": "of large objects",
    "AR_S": "of small objects",
    "AR_M": "of medium objects",
    "AR_L": "of large objects",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
}


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Declare the arguments of `attnzoo eval`; returns the parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    options.add_model_arguments(parser, overrides=False)
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help="settings, such as data.dataset.root=/data/coco"
    )
    parser.add_argument("--per-class", action="store_true", help="also the AP, or the accuracy, of every class")
    parser.add_argument("--speed", action="store_true", help="also images per second, one and four at a time")
    parser.add_argument("--json", action="store_true", help="print JSON, with all digits")
    parser.add_argument("--no-cache", action="store_true", help="predict anew, and keep no predictions")
    return parser


def main(args: argparse.Namespace) -> int:
    """Run `attnzoo eval`; returns the exit code."""
    import torch

    from attnzoo.inference.evaluate import evaluate, recorded_metrics, validation_set
    from attnzoo.inference.speed import measure_speed

    model = options.load(args)
    if model.run is not None:
        torch.set_num_threads(model.settings.threads)  # results depend on it
    try:
        dataset = validation_set(model)
    except UserError as error:
        if model.run is None and not any(text.startswith("data.dataset") for text in args.overrides):
            raise UserError(f"give the data set, as data.dataset.root=FOLDER ({error})", key=error.keys) from None
        raise
    result = evaluate(model, dataset, per_class=args.per_class, use_cache=not args.no_cache)
    speed = measure_speed(model, dataset[0][0]) if args.speed else None
    for difference in result.differences[:3]:
        print(f"classes differ: {printable(difference)}", file=sys.stderr)
    if args.json:
        content = {"images": result.num_images, "metrics": result.metrics}
        content |= {"per_class": result.per_class} if args.per_class else {}
        content |= {"speed": speed.as_dict()} if speed is not None else {}
        print(json.dumps(_without_nan(content), indent=1))
        return 0
    cached = ", predictions from the cache" if result.cached else ""
    dataset = model.settings.data.dataset["name"]
    print(f"{model.weights}: {result.num_images} images of {dataset}{cached}")
    for name, value in result.metrics.items():
        print(_row(name, value))
    for name, values in result.per_class.items():
        print(f"{printable(name):24}" + "  ".join(f"{metric} {_percent(value)}" for metric, value in values.items()))
    if not args.overrides and (recorded := recorded_metrics(model)) is not None:
        print(_beside(result.metrics, *recorded))
    if speed is not None:
        print(speed)
    return 0


def _row(name: str, value: float) -> str:
    if name == "loss":
        return f"{name:8}{value:7.4f}   cross-entropy"
    limit = name.removeprefix("AR_")
    default = f"with at most {plural(int(limit), 'detection')} per image" if limit.isdigit() else ""
    return f"{name:8}{_percent(value)}   {TITLES.get(name, default)}".rstrip()


def _percent(value: float) -> str:
    return "     –" if math.isnan(value) else f"{100 * value:5.1f} %"


def _beside(metrics: Mapping[str, float], step: int, recorded: Mapping[str, float]) -> str:
    """How the metrics compare with those that the run recorded."""
    other = [name for name, value in recorded.items() if name in metrics and metrics[name] != value]
    if not other:
        return f"equal to what the run recorded at step {step}"
    name = other[0]
    difference = metrics[name] - recorded[name]
    return f"differs from what the run recorded at step {step}: {name} by {difference:+.2g}; see docs/checkpoints.md"


def _without_nan(value: object) -> object:
    """JSON has no NaN: null, for metrics without ground truth."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
