"""Annotated pictures: boxes with names and scores on an image, or its classes below it."""

from PIL import Image, ImageDraw, ImageFont

from attnzoo.inference.draw import COLORS
from attnzoo.inference.loaded import Detections, Prediction

MIN_SIDE = 512  # pixels: smaller images are enlarged, so that text is legible


def annotate(image: Image.Image, prediction: Prediction) -> Image.Image:
    """A copy of an upright RGB image with what was predicted, enlarged by a whole number if it is small."""
    factor = max(-(-MIN_SIDE // max(image.size)), 1)
    picture = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    size = max(round(max(picture.size) / 40), 14)
    font = ImageFont.load_default(size)
    if isinstance(prediction, Detections):
        _draw_boxes(picture, prediction, factor, font, size)
        return picture
    lines = [f"{name}  {score:.2f}" for name, score in zip(prediction.names, prediction.scores.tolist(), strict=True)]
    return _with_caption(picture, lines, font, size)


def _draw_boxes(
    picture: Image.Image, found: Detections, factor: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, size: int
) -> None:
    """The best last, on top of the others."""
    draw = ImageDraw.Draw(picture)
    width, pad = max(round(size / 7), 2), max(size // 6, 2)
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), found.names, strict=True)
    for box, score, label, name in reversed(list(rows)):
        x1, y1, x2, y2 = (value * factor for value in box)
        x1, x2 = (min(max(x, 0), picture.width - 1) for x in (x1, x2))
        y1, y2 = (min(max(y, 0), picture.height - 1) for y in (y1, y2))
        color = COLORS[label % len(COLORS)]
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=color, width=width)
        text = f"{name} {score:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        w, h = right - left + 2 * pad, bottom - top + 2 * pad
        x = max(min(x1, picture.width - w), 0)
        y = y1 - h if y1 >= h else y1  # inside the box where there is no room above it
        draw.rectangle((x, y, x + w, y + h), fill=color)
        draw.text((x + pad - left, y + pad - top), text, fill="black" if _is_light(color) else "white", font=font)


def _is_light(color: str) -> bool:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue > 128


def _with_caption(
    picture: Image.Image, lines: list[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont, size: int
) -> Image.Image:
    height = round(1.4 * size)
    page = Image.new("RGB", (picture.width, picture.height + height * len(lines) + size // 2), "white")
    page.paste(picture, (0, 0))
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        draw.text((size // 2, picture.height + size // 4 + number * height), line, fill="black", font=font)
    return page
