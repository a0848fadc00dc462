"""The Hugging Face Hub: what an argument means there; the only package that knows its client.

What is local needs no client: importing this package does not import it.
"""

import os
import re
from pathlib import Path

from lora_tools.files.location import Location

SCHEMES = ("hf://", "https://huggingface.co/", "https://hf.co/")
BARE = re.compile(r"\w[\w.-]*/\w[\w.-]*(@(refs/pr/\d+|[^/\s]+))?")
"""``org/name`` or ``org/name@revision``, as people write it."""


def is_remote(text: str) -> bool:
    """Whether a command's argument means the Hub: what exists here does not.

    >>> is_remote("hf://org/name"), is_remote("org/name@v1"), is_remote("./org/name")
    (True, True, False)
    """
    if text.startswith(SCHEMES):
        return True
    return bool(BARE.fullmatch(text)) and not os.path.lexists(text)


def locate(text: str | Location) -> Location:
    """Return where a text leads: a path here, or a place on the Hub, pinned to its commit.

    ``hf://org/name[@revision][/file]`` is on the Hub; so is a bare ``org/name[@revision]`` unless
    there is such a path here. Costs two requests, and none for what is local. Raises `HubError`.
    """
    if not isinstance(text, str):
        return text
    if not is_remote(text):
        return Path(text)
    from lora_tools.hub.location import pinned

    return pinned(text)
