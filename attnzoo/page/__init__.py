"""HTML pages that need no other file: their template, style and script in one, and the style that they share."""

from collections.abc import Mapping
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from attnzoo import __version__


def render_page(package: str, content: Mapping[str, Any]) -> str:
    """`page.html` of the templates of a package, with `content`, the `version`, and its `style` and `script`.

    `page.html` extends `base.html`, the head and frame of all pages. `style` is the style of all pages followed by the
    package's style.css; `script` is its files of JavaScript.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("attnzoo.page")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup(_source(environment, "base.css") + _source(environment, "style.css"))
    files = environment.list_templates(extensions=["js"])
    script = Markup("\n".join(_source(environment, name) for name in files))
    template = environment.get_template("page.html")
    return template.render(content, version=__version__, style=style, script=script) + "\n"


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]
