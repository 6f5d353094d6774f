"""Typeset `$...$` and `$$...$$` as MathML, which browsers render without a script."""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

# A function that is applied without parentheses; TeX sets it off by thin spaces, the converter not.
FUNCTION = re.compile(r"\\(log|exp|ln|arg|max)(?![a-z(_])")
# What the Markdown extension arithmatex makes of a formula, delimiters included.
FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    """Replace every formula of a rendered page."""
    return FORMULA.sub(_typeset, html)


def _typeset(formula: re.Match[str]) -> str:
    display = "block" if formula[1] == "div" else "inline"
    spaced = FUNCTION.sub(r"\\,\\\1\\,", unescape(formula[2])[2:-2])
    return convert(spaced, display=display)
