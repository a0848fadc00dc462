"""What every page has in common: its template, style and scripts."""

import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING

from lora_tools.errors import PackageError
from lora_tools.page import words

if TYPE_CHECKING:
    from jinja2 import Template

PARTS = ("theme", "table", "heat", "spectra", "shrink", "start")
INSTALL = "Install it with: pip install 'lora-tools[report]'"


def template() -> "Template":
    """Return the template, which escapes whatever it is given."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise PackageError("a page needs jinja2, which is not installed").hint(INSTALL) from error
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= words.FILTERS
    return environment.from_string(_read("page.html.j2"))


def style() -> str:
    """Return the style sheet."""
    return _read("page.css")


def script() -> tuple[str, ...]:
    """Return the scripts in the order in which they run: plotly's, then ours."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise PackageError("a page needs plotly, which is not installed").hint(INSTALL) from error
    ours = "\n".join(_read(f"{part}.js") for part in PARTS)
    return _enclosed(get_plotlyjs()), _enclosed(f'"use strict";\n(() => {{\n{ours}}})();\n')


def policy(scripts: Sequence[str]) -> str:
    """Return the page's Content-Security-Policy: these scripts run, no other, and none calls out.

    plotly writes styles of its own, so styles are only kept from coming from elsewhere.
    """
    digests = (b64encode(sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )


def _enclosed(code: str) -> str:
    """Return code that means the same and cannot end or confuse the element around it.

    Line ends are what a browser's parser makes of them, or the digest would not fit.
    """
    code = code.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"<(?=!--|/script)", r"\\x3c", code, flags=re.IGNORECASE)


def _read(name: str) -> str:
    return (files("lora_tools.page") / name).read_text(encoding="utf-8")
