"""Whole screens of the command line, kept as files so that a change of one is a change to read.

``LORA_TOOLS_SCREENS=write pytest`` writes them anew.
"""

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "screens"


def check(name: str, text: str) -> None:
    """Compare a screen with the one on file."""
    file = FOLDER / f"{name}.txt"
    if os.environ.get("LORA_TOOLS_SCREENS") == "write":
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")
