"""Hooks of mkdocs.yml: pages at the top of the repository, links to files outside docs/, titles of saved comparisons.

The Markdown files are written for a checkout: their links are relative to the repository. Here links to README.md,
CONTRIBUTING.md and CHANGELOG.md become links to pages, and other files outside docs/ are copied into the site.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave out pages of the navigation that this checkout does not have."""
    config.nav = _existing(config.nav or [])
    return config


def _existing(entries: list[Any]) -> list[Any]:
    kept = []
    for entry in entries:
        title, target = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(target, list):
            kept.append({title: _existing(target)})
        elif target in PAGES.values() or (ROOT / "docs" / target).is_file():
            kept.append(entry)
    return kept


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages at the top of the repository, and saved comparison.html beside the page of comparison.md."""
    for source, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    for path in (ROOT / "docs").glob("results/*/comparison.html"):
        uri = _renamed(path.relative_to(ROOT / "docs").as_posix())
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def _renamed(uri: str) -> str:
    return re.sub(r"/comparison\.html$", "/page.html", uri)


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    uri = page.file.src_uri
    source = next((source for source, of_page in PAGES.items() if of_page == uri), f"docs/{uri}")
    if re.fullmatch(r"results/\w+/comparison\.md", uri):
        markdown = f"# {uri.split('/')[1]}\n\n{markdown}"

    def to_site(match: re.Match[str]) -> str:
        before, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if (ROOT / path).is_dir():
            path = f"{path}/README.md"
        if ":" in target or not (ROOT / path).is_file():
            return match[0]  # mkdocs warns of broken links
        linked = PAGES.get(path) or _renamed(
            path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}"
        )
        if linked not in files.src_uris:
            files.append(File.generated(config, linked, abs_src_path=str(ROOT / path)))
        return f"{before}{posixpath.relpath(linked, posixpath.dirname(uri) or '.')}{anchor or ''}"

    return LINK.sub(to_site, markdown)
