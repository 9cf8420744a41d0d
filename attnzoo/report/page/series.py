"""The variants as the plots show them: in one order, each with one colour."""

from dataclasses import dataclass

from markupsafe import Markup

from attnzoo.report.comparison import Comparison, Variant
from attnzoo.report.page.svg import tag

COLORS = 8  # in style.css; further variants repeat them with other dashes


@dataclass(frozen=True)
class Series:
    """A variant in the plots. `index`: 0 is the baseline, in the colour of the text."""

    index: int
    name: str
    variant: Variant

    @property
    def classes(self) -> str:
        """Its colour and its dashes in style.css."""
        return f"c{self.index % COLORS} d{self.index // COLORS % 3}"

    def group(self, *children: object) -> Markup:
        """The elements of this variant, which are highlighted together."""
        return tag("g", *children, class_=self.classes, data_v=self.index)


def series_of(comparison: Comparison) -> list[Series]:
    """One per variant in the order of the table; the baseline has index 0."""
    names = [variant.name or "all runs" for variant in comparison.variants]
    baseline = comparison.paired.baseline if comparison.paired else names[0]
    order = sorted(range(len(names)), key=lambda index: names[index] != baseline)
    numbers = {row: number for number, row in enumerate(order)}
    return [Series(numbers[row], names[row], variant) for row, variant in enumerate(comparison.variants)]
