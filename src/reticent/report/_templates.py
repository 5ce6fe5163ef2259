"""Templates of pages, and what all of them share: the style sheet, and how figures are shown.

Room: report; jinja2 is imported here and in `_card` only.
"""

import math
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from reticent.report._figures import percent_up, round_up


def page(template: str, **values: Any) -> str:
    """A page from its template; every value is escaped unless it is `Markup`."""
    templates = Environment(
        loader=PackageLoader("reticent.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "up": round_up,
        "percent_up": percent_up,
        "thousands": "{:,}".format,
        "or_none": _or_none,
        "breakable": _breakable,
        "log": math.log,
    }
    return templates.get_template(template).render(style=Markup(part("style.css")), **values)


def _breakable(name: str) -> Markup:
    """A dotted name that a narrow page may break between its words."""
    return Markup(str(escape(name)).replace(".", ".<wbr>").replace("_", "_<wbr>"))


def _or_none(value: Any, form: str) -> str:
    return "none" if value is None else form % value


def part(name: str) -> str:
    """A file of ours beside the templates."""
    return resources.files("reticent.report").joinpath(f"templates/{name}").read_text(encoding="utf-8")
