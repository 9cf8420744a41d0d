"""Screenshots of an HTML page, such as a comparison: desktop in light and dark, phone, and a PDF of its print.

python tools/screenshots.py runs/ablate_points/comparison.html /tmp/screenshots
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

VIEWS = {  # name -> width in pixels, colour scheme
    "desktop-light": (1280, "light"),
    "desktop-dark": (1280, "dark"),
    "phone-light": (375, "light"),
    "phone-dark": (375, "dark"),
}


def main() -> None:
    """Write one PNG file per view, and page.pdf."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", type=Path, help="an HTML file")
    parser.add_argument("folder", type=Path, help="where the pictures are written")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, scheme) in VIEWS.items():
            page = browser.new_page(viewport={"width": width, "height": 800}, device_scale_factor=1.5)
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            page.goto(args.page.resolve().as_uri())
            page.screenshot(path=args.folder / f"{name}.png", full_page=True)
        page.pdf(path=args.folder / "page.pdf", format="A4")
        browser.close()
    print(args.folder)


if __name__ == "__main__":
    main()
