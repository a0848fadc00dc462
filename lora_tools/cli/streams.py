"""The streams that a process leaves with: whatever is written to them is fit to be shown.

Not only what this project prints: also warnings, tracebacks and the messages of libraries.
"""

import os
import re
import sys
from typing import Any, TextIO

from lora_tools.text import visible

MOVES = re.compile(r"(?:\x1b\[A)+")
"""What tqdm writes, alone, to reach the line of another bar."""


class Guarded:
    """A stream that shows what would act on a terminal, and that may be closed at its other end.

    A reader that has gone (``| head``) is no error: what is written after that is lost. A full disk
    is one on stdout; on stderr there is nobody to tell.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self.stream, self.name = stream, name
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")  # an encoding that lacks a character shows it

    def write(self, text: str) -> int:
        """Write what a library has to say; a bar may return to the start of its line."""
        if MOVES.fullmatch(text):
            return self.trusted(text)
        middle = text.strip("\r")
        start, _, end = text.partition(middle) if middle else (text, "", "")
        return self.trusted(start + visible(middle, keep="\n\t") + end)

    def trusted(self, text: str) -> int:
        """Write what has been made visible, and our own colours."""
        try:
            self.stream.write(text)
        except OSError as error:
            self._lost(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Pass on what was written; `OSError`, which names the stream, if that cannot be."""
        try:
            self.stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        """Send what is left, and all that follows, where it is not missed."""
        void = os.open(os.devnull, os.O_WRONLY)
        os.dup2(void, self.stream.fileno())
        os.close(void)
        if self.name == "stdout" and not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, error.strerror, self.name) from None

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # whoever writes bytes past us is not guarded
            raise AttributeError(name)
        return getattr(self.stream, name)


def guard() -> None:
    """Guard stdout and stderr for the rest of the process; closed ones lead nowhere.

    Otherwise the next file that is opened would be given their number, and what a library prints.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115, PTH123 - stays open
        setattr(sys, name, Guarded(stream, name))
