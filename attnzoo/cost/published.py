"""Published parameters and FLOPs of the presets, and how the counted ones differ."""

from dataclasses import dataclass
from pathlib import Path

from attnzoo.rundir.costs import VariantCosts
from attnzoo.schema import yaml12

TABLE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Published:
    """Published parameters in millions and GFLOPs of one image of `size` (h, w), both as rounded there.

    `explanation`: why the counted GFLOPs differ by more than 3 % for a detector or 0.5 % for a classifier.
    """

    params: float
    gflops: float
    size: tuple[int, int]
    source: str
    explanation: str = ""

    def difference(self, costs: VariantCosts) -> float:
        """Counted over published GFLOPs, minus 1."""
        return costs.gflops / self.gflops - 1


def published(preset: str) -> Published | None:
    """The published figures of a preset; None if there are none."""
    values = yaml12.read(TABLE).get(preset)
    if values is None:
        return None
    height, width = values.pop("size")
    return Published(size=(height, width), **values)
