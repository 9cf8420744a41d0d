"""The report on a data set as text."""

from collections.abc import Iterator, Sequence

from attnzoo.errors import plural, printable
from attnzoo.userdata.check import DataReport, SplitReport

MAX_CLASSES = 30  # that are listed: the most common, and the rarest


def report_text(report: DataReport) -> str:
    """The report as `attnzoo data` prints it."""
    detection = report.layout != "class folders"
    title = {"coco": "COCO format", "yolo": "YOLO format", "voc": "Pascal VOC format"}.get(report.layout, report.layout)
    lines = [f"{report.folder}: {title}, {plural(len(report.classes), 'class', 'classes')}", ""]
    lines += _counts(report, detection)
    lines += ["", *_classes(report, detection)]
    if detection:
        lines += _boxes(report)
    problems = [(split, problem) for split, part in report.splits.items() for problem in part.problems]
    problems += [("both", problem) for problem in report.problems]
    if problems:
        lines += ["", "odd"]
        for split, problem in sorted(problems, key=lambda item: not item[1].error):
            mark = "ERROR " if problem.error else ""
            text = f"{mark}{problem.text}: {problem.count:,}, the first {problem.first}"
            lines.append(f"  {split}: {text}" if split != "both" else f"  {text}")
    lines += ["", *(f"note: {note}" for note in report.notes)] if report.notes else []
    return "\n".join(map(printable, lines))


def _counts(report: DataReport, detection: bool) -> list[str]:
    head = ["split", "images", "size, width x height"]
    head += ["boxes", "crowds", "most in one image", "images without boxes"] if detection else []
    rows = [head]
    for name, split in report.splits.items():
        row = [name, f"{split.images:,}", _image_size(split)]
        if detection:
            row += [f"{split.boxes:,}", f"{split.crowds:,}", f"{split.most_boxes:,}", f"{split.images_without_boxes:,}"]
        rows.append(row)
    return _table(rows)


def _image_size(split: SplitReport) -> str:
    width, height = split.image_size
    others = f", and {plural(split.image_sizes - 1, 'other size')}" if split.image_sizes > 1 else ""
    return f"{width} x {height}{others}"


def _classes(report: DataReport, detection: bool) -> list[str]:
    counts = {
        name: [split.classes[name] for split in report.splits.values()] for name in report.splits["train"].classes
    }
    names = sorted(counts, key=lambda name: -counts[name][0])
    shown = names if len(names) <= MAX_CLASSES else names[: MAX_CLASSES // 2] + names[-MAX_CLASSES // 2 :]
    rows = [[f"{'boxes' if detection else 'images'} of", *report.splits]]
    rows += [[name, *(f"{count:,}" for count in counts[name])] for name in shown]
    lines = _table(rows)
    if len(shown) < len(names):
        lines.insert(1 + MAX_CLASSES // 2, f"… {plural(len(names) - len(shown), 'other class', 'other classes')}")
    return lines


def _boxes(report: DataReport) -> Iterator[str]:
    train = report.splits["train"]
    if not train.box_sizes:
        return
    yield from ("", "training boxes, square root of the area in pixels")
    rows = [["images", *train.box_sizes[0].quantiles]]
    rows += [[sizes.images, *(f"{value:g}" for value in sizes.quantiles.values())] for sizes in train.box_sizes]
    yield from _table(rows)
    yield from ("", "training boxes with a side shorter than one cell of a feature map of stride")
    rows = [["images", *train.box_sizes[0].below]]
    rows += [[sizes.images, *(f"{value:.0%}" for value in sizes.below.values())] for sizes in train.box_sizes]
    yield from _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
