"""Draw images of digit_scenes with each of its options, for docs/digit-scenes.md: python tools/digit_scenes.py."""

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from attnzoo.data.rendering import Scene
from attnzoo.data.scenes import DigitScenes

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "digit-scenes.jpg"
COLUMNS = 5
SCENES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "small to large objects": {"image_size": 128, "sizes": (6, 96), "size_thresholds": (15, 38), "objects": (3, 6)},
    "elongation": {"elongation": (2, 4), "rotation": 90, "sizes": (16, 40)},
    "arrangement of parts": {
        "image_size": 96,
        "classes": "arrangement",
        "sizes": (64, 84),
        "part_size": 12,
        "objects": (1, 1),
    },
    "crowding": {"objects": (8, 12), "sizes": (8, 18), "max_overlap": 0.4},
    "distractors": {"clutter": (4, 8)},
    "low contrast": {"contrast": (15, 40), "tint": 15},
}


def draw(axes: Axes, scene: Scene, class_names: list[str]) -> None:
    side = scene.pixels.shape[0]
    axes.imshow(scene.pixels, interpolation="nearest", extent=(0, side, side, 0))
    for shown in scene.objects:
        x, y, w, h = shown.box
        axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor="yellow", linewidth=0.7))
        above = y > 0.06 * side
        label = axes.text(x, y, class_names[shown.label], fontsize=5, va="bottom" if above else "top")
        label.set_bbox({"facecolor": "yellow", "edgecolor": "none", "pad": 0.4, "alpha": 0.8})
    axes.set(xlim=(0, side), ylim=(side, 0), xticks=[], yticks=[])


def caption(options: dict[str, Any]) -> str:
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    return (
        "   ".join(f"{key}: {value}" for key, value in values.items()) or "2 to 4 digits of 10 to 28 pixels on 64 × 64"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PICTURE)
    out: Path = parser.parse_args().out
    figure = plt.figure(figsize=(1.35 * COLUMNS, 1.62 * len(SCENES)), layout="constrained")
    rows: Any = figure.subfigures(len(SCENES), 1)
    for row, (title, options) in zip(rows, SCENES.items(), strict=True):
        spec = DigitScenes(**options)
        row.suptitle(f"{title}:  {caption(options)}", fontsize=8, x=0.01, ha="left")
        for axes, scene in zip(row.subplots(1, COLUMNS), islice(spec.scenes("val"), COLUMNS), strict=True):
            draw(axes, scene, spec.class_names)
    figure.savefig(out, dpi=100, pil_kwargs={"quality": 88})
    print(out)


if __name__ == "__main__":
    main()
