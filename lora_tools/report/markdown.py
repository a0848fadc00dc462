"""Text of strangers in Markdown: it is read as it is, whatever it would mean there."""

import re

from lora_tools.text import label, visible

MARKS = re.compile(
    r"[\\`*<>|&~$]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # within a word it is a letter
    r"|\[(?![\d.,…]*\](?![(\[:]))"  # but for the ranges of numbers that stand for layers
)


def plain(text: object) -> str:
    r"""Return text as it is read in a line of Markdown.

    >>> print(plain("layers.[0..3].self_attn"), plain("a|b"), plain("[x](y)"), plain("<img>"))
    layers.[0..3].self_attn a\|b \[x](y) \<img\>
    """
    return MARKS.sub(r"\\\g<0>", visible(str(text)))


def code(text: object) -> str:
    """Return a name as code within a line.

    >>> print(code("a"), code("a`b"))
    `a` `` a`b ``
    """
    shown = label(text)
    fence = "`" * (_longest(shown) + 1)
    return f"{fence} {shown} {fence}" if "`" in shown or shown != shown.strip() else f"`{shown}`"


def block(language: str, *lines: str) -> list[str]:
    """Return the lines of a block of code that no line in it can end."""
    shown = [visible(line) for line in lines]
    fence = "`" * max(3, *(_longest(line) + 1 for line in shown))
    return [f"{fence}{language}", *shown, fence, ""]


def _longest(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
