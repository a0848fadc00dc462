r"""Text of strangers, made fit to be shown: it acts on no terminal and starts no line.

Names of tensors, metadata, configurations and file names are anybody's. What is not meant to be
read, but to be obeyed, is shown as Python writes it: ``\x1b``, ``\u202e``.
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

UNSEEN = (
    "\x00-\x1f\x7f-\x9f"  # controls: C0, DEL, C1
    "\u2028-\u202e\u2060-\u206f\u061c\u200b-\u200f"  # separators, bidi and zero width
    "\xad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180e\u3164\ufeff\uffa0\ufff9-\ufffb"  # no width
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "\ud800-\udfff"  # halves of pairs, which no encoding has
)
"""The inside of a regular expression's brackets: what a reader does not see, or sees elsewhere."""

LONGEST = 200
"""Characters of a name that are shown."""
PATH = 4096
"""Characters of the longest path that systems allow: what a person may have to copy is whole."""
LINE, WIDEST = 2000, 10_000
"""Characters of a line of a message, and of one of a result."""

_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def visible(text: str, keep: str = "") -> str:
    r"""Return the text with every unseen character but those of ``keep`` as an escape.

    Done twice, it is done once.

    >>> print(visible("a\x1b[31m\nb"), visible("a\nb\u202e", keep="\n"))
    a\x1b[31m\nb a
    b\u202e
    """
    return _unseen(keep).sub(lambda found: _SHORT.get(found[0]) or _escape(ord(found[0])), text)


def cut(text: str, most: int = LONGEST) -> str:
    """Return the text with its middle left out if it is longer than ``most``.

    >>> cut("abcdefghij", most=7)
    'abc…hij'
    """
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def label(text: object) -> str:
    """Return a name as it is shown: visible, on one line, and of a length that can be read."""
    return visible(cut(str(text)))


def message(text: str, most: int = LONGEST) -> str:
    """Return one line for a person: every word of at most ``most`` characters, and not too many."""
    return visible(cut(_words(text, most), max(LINE, most)))


def result(text: str) -> str:
    """Return the lines of a result as they can be shown: the newlines in it are meant."""
    return "\n".join(visible(cut(_words(line), WIDEST), keep="\t") for line in text.split("\n"))


def _words(text: str, most: int = PATH) -> str:
    """Return the text with the middle of overlong words left out."""
    return re.sub(rf"\S{{{most + 1},}}", lambda found: cut(found[0], most), text)


def joined(texts: Iterable[str]) -> str:
    """Return texts as lines: each is one, whatever it holds."""
    return "\n".join(map(visible, texts))


def json_text(data: Any, indent: int | None = 2) -> str:
    r"""Return plain data as JSON for people and machines, in which nothing is unseen.

    What `visible` escapes, JSON's own escapes say: whoever parses it has every character again.
    Raises `ValueError` for NaN and Inf, which JSON lacks.

    >>> print(json_text("é\x9b\ud800", indent=None))
    "é\u009b\ud800"
    """
    return _seen(json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False))


def config_text(config: Mapping[str, Any]) -> str:
    """Return a configuration that was read as JSON again, as Python writes it.

    Unlike `json_text` it keeps NaN and Infinity: transformers writes ``Infinity`` for Mamba-2's
    ``time_step_limit``, and whoever reads such files reads it.

    >>> config_text({"time_step_limit": float("inf")}).split()[1:3]
    ['"time_step_limit":', 'Infinity']
    """
    return _seen(json.dumps(config, indent=2, ensure_ascii=False))


def ascii_json(text: str) -> str:
    """Return JSON in ASCII, for where nothing else can be written."""
    return re.sub(r"[^\x00-\x7f]", lambda found: _in_json(ord(found[0])), text)


def _seen(text: str) -> str:
    """Return JSON with an escape for whatever is not seen."""
    return _unseen("\n").sub(lambda found: _in_json(ord(found[0])), text)


@lru_cache
def _unseen(keep: str) -> re.Pattern[str]:
    kept = f"(?![{keep}])" if keep else ""
    return re.compile(f"{kept}[{UNSEEN}]")


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _in_json(code: int) -> str:
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
