"""Builds SVG elements; all text and attribute values are escaped."""

from collections.abc import Callable

from markupsafe import Markup, escape

CHARACTER = 7.3  # about the width of a character of plots, in pixels


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element; `stroke_width` stands for the attribute stroke-width, `class_` for class; None leaves one out."""
    values = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _number(value))
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), values, Markup("").join(map(escape, children)))


def text(x: float, y: float, content: object, class_: str = "", anchor: str = "start", limit: float = 0) -> Markup:
    """A line of text with its baseline at (x, y); `limit`: cut to this width in pixels, the whole in a tooltip."""
    whole, shown = str(content), str(content)
    if limit and len(whole) * CHARACTER > limit:
        shown = whole[: max(1, int(limit / CHARACTER) - 1)] + "…"
    tooltip = [tag("title", whole)] if shown != whole else []
    return tag("text", *tooltip, shown, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def plot(name: str, width: float, height: float, title: str, description: str, *children: object) -> Markup:
    """An svg element of the given size in pixels, with the texts that a screen reader reads."""
    key = f"{name}-{width:g}"
    return tag(
        "svg",
        tag("title", title, id=f"{key}-title"),
        tag("desc", description, id=f"{key}-desc"),
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
    )


def two_widths(draw: Callable[[int], Markup]) -> Markup:
    """A plot drawn for wide screens and print, and for phones; the style shows one of them."""
    wide, narrow = (tag("div", draw(width), class_=name) for name, width in (("wide", 900), ("narrow", 340)))
    return wide + narrow


def path_of(points: list[tuple[float, float]]) -> str:
    """The `d` attribute of a line through the points."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _number(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
