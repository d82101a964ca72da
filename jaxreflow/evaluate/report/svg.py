"""Matplotlib figures as SVG elements of an HTML page: text stays text, ids stay apart, and ink is the page's text colour."""

from __future__ import annotations

import html
import io
import re
from typing import TYPE_CHECKING

import matplotlib as mpl

from jaxreflow.evaluate.report.figures import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def inline(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element; `name` keeps its ids apart from others', `description` is read to who cannot see it."""
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # In HTML an element knows its namespace; without the declarations the page names no address at all.
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor")
    label = html.escape(description, quote=True)
    text = re.sub(r'<svg width="[^"]+" height="[^"]+"', "<svg", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
