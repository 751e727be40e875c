"""HTML pages from Jinja2 templates: one file that loads nothing, with everything from outside escaped."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from rescompile.presenting.plots.plot import Plot
from rescompile.presenting.terms import TERMS
from rescompile.wording import duration, plain, size

_TERM = re.compile(rf"\b({'|'.join(TERMS).replace(' ', '[ -]')})s?\b", re.IGNORECASE)
_KNOWN = {term.lower(): term for term in TERMS}
_SCRIPT = Markup((Path(__file__).parent / "templates" / "sort.js").read_text("utf-8"))
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
"""A page allows this script alone, by its hash."""


def render(template: str, *, folder: Path | None = None, **values: object) -> str:
    """The page as text, to be written as UTF-8; the same values give the same page.

    Args:
        template: name of a template of this package or of ``folder``. It extends ``base.html``.
        folder: templates from elsewhere.
        values: what the template is filled with. ``base.html`` needs ``title``, ``headline``, ``explanation`` and
            ``tone`` (good, bad, open or nothing: the colour of the headline).
    """
    return _environment(folder).get_template(template).render(**values)


@cache
def _environment(folder: Path | None) -> Environment:
    own = PackageLoader("rescompile.presenting.html")
    made = Environment(
        loader=ChoiceLoader([own, FileSystemLoader(folder)]) if folder else own,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    made.filters |= {"duration": duration, "size": size, "svg": _svg, "term": _link_terms, "png": _png}
    made.globals |= {"linked_terms": _linked_terms, "script": _SCRIPT, "script_hash": _SCRIPT_HASH}
    return made


def _visible(value: object) -> object:
    """Show control characters in names from outside as text; markup of our own stays as it is."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _svg(plot: Plot) -> Markup:
    """The plot as markup whose caption also serves screen readers."""
    opening = Markup('<svg role="img" aria-label="{}"').format(plain(plot.caption))
    return Markup(plot.svg().replace("<svg", opening, 1))


def _png(content: bytes) -> str:
    """A PNG as the address of an image."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _link_terms(text: str) -> Markup:
    """``text`` with every term as a link to its definition at the end of the page."""
    return Markup(_TERM.sub(_link, escape(plain(text))))


def _link(found: re.Match[str]) -> str:
    term = _KNOWN[found[1].lower().replace("-", " ")]
    link = Markup('<a class="term" href="#{}" title="{}">{}</a>')
    return link.format(_anchor(term), TERMS[term], found[0])


def _anchor(term: str) -> str:
    return f"term-{term.lower().replace(' ', '-')}"


def _linked_terms(body: str) -> list[tuple[str, str, str]]:
    """(anchor, term, definition) of the terms that are links in ``body``."""
    return [
        (_anchor(term), term, meaning)
        for term, meaning in TERMS.items()
        if f'href="#{_anchor(term)}"' in body
    ]
