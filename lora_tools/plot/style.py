"""How a picture looks: white paper, quiet axes, colours that the colour-blind tell apart."""

from collections.abc import Set
from functools import cache
from typing import Any

FONT = "DejaVu Sans"
"""Comes with matplotlib, so that the picture is the same everywhere."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8a6d00", "#5b3f99", "#6b7280")
"""After Okabe and Ito 2008; yellow and black made way for what shows as a thin line."""
DASHES = ("-", "--", ":", "-.")
INK, SOFT, RULE = "#1d2129", "#5d6470", "#dfe1e5"

SETTINGS: Any = {
    "font.family": FONT,
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a name may hold dollars
    "axes.edgecolor": RULE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "svg.hashsalt": "lora-tools",
    "pdf.fonttype": 42,
}


def short(name: str, most: int = 32) -> str:
    """Return a name's end, which tells more than its beginning.

    >>> short("encoder.block.0.q_proj", most=8)
    '….q_proj'
    """
    return name if len(name) <= most else f"…{name[1 - most :]}"


def printable(text: str) -> str:
    """Return the text with what the font lacks replaced."""
    signs = _signs()
    return "".join(sign if ord(sign) in signs else "�" for sign in text)


@cache
def _signs() -> Set[int]:
    """Return the characters that the font has."""
    from matplotlib.font_manager import findfont, get_font

    return get_font(findfont(FONT)).get_charmap().keys()
