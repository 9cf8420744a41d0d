"""Draw the pictures of docs/drawing.md: python docs/drawing/figures.py runs/ablate_points/points=4-seed=1000

The argument is a run of `make demo`; the pictures are of its validation set. The page is photographed in Chromium.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

import attnzoo
from attnzoo.data.build import build_dataset
from attnzoo.inference.drawing import draw_attentions

FOLDER = Path(__file__).parent
IMAGES = (3, 5, 7)  # of the validation set
SIZE = {"width": 1060, "height": 720}


def main(run: str) -> None:
    """Write points.png and page.png next to this file."""
    model = attnzoo.load_model(run)
    dataset = build_dataset(model.settings.data, "val", model.settings.seed)
    images = [dataset.path(index) for index in IMAGES]
    name = f"{Path(run).parent.name}/{Path(run).name}"
    with tempfile.TemporaryDirectory() as folder:
        large, page_file = Path(folder) / "points.png", Path(folder) / "page.html"
        draw_attentions(model, images[0], large, best=2, compare="initial", zoom=True)
        _reduce(large, FOLDER / "points.png", 1000)
        draw_attentions(model, images, page_file, head=0, names=(name, ""))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport=SIZE)
            page.goto(page_file.as_uri())
            page.locator("#view circle").first.wait_for(state="attached")
            page.screenshot(path=Path(folder) / "page.png")
            browser.close()
        _reduce(Path(folder) / "page.png", FOLDER / "page.png", SIZE["width"])


def _reduce(source: Path, target: Path, width: int) -> None:
    """Fewer pixels, for small files."""
    image = Image.open(source).convert("RGB")
    image.thumbnail((width, width))
    image.save(target, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
