"""Paths of a machine: what they look like, and what is left of ours when they are cut."""

import re
from collections.abc import Iterator
from pathlib import PureWindowsPath

FOLDERS = (
    "home|Users|root|mnt|media|tmp|scratch|pscratch|workspace|work|data|gpfs|lustre|nfs|fsx|kaggle"
    "|Volumes|storage|cluster|beegfs|cephfs|ceph|dbfs|efs|autofs|runpod-volume|projects|raid|srv"
    "|private/var|var/folders|content/drive"
)
END = r"\s\"'`,;:)\]}<>|"
UNIX = rf"(?<![\w.~:/$%}}-])/(?:{FOLDERS})[0-9]{{0,3}}/[^{END}]{{1,1000}}"
LINKED = rf"(?i:file)://(?:localhost)?/(?:[A-Za-z]:/)?[^{END}/][^{END}]{{0,1000}}"
DRIVE = (
    r"(?<![A-Za-z0-9/])[A-Za-z]:"
    r"(?:/(?!/|Windows\b|Program Files)(?=[\w .$-]{1,100}/)"
    r"|\\{1,8}(?!Windows\b|Program Files)(?=\w[\w .$-])"
    # A backslash before these letters may end a line in code or JSON: Q:\nWhat is it?\nA:
    rf"(?![abfnrtuvx0](?![^{END}\\]{{0,100}}(?:\\{{1,8}}[^{END}\\nrtux0]|\.\w{{2,11}}\b))))"
    rf"[^{END}]{{1,1000}}"
)
PATH = re.compile(f"{UNIX}|{LINKED}|{DRIVE}")
PATTERNS = (
    ("/", re.compile(UNIX)),
    ("://", re.compile(LINKED)),
    (":", re.compile(DRIVE)),
)
"""The same one by one, which is quicker, and text that each needs."""

PLACEHOLDER = re.compile(
    r"(?:file://|[A-Za-z]:)?[\\/]+(?:(?:home|Users)[\\/]+(?:user(?:name)?|you|name)(?![\w-])"
    r"|path[\\/]+to[\\/]|(?:\w+[\\/]+)?(?:your|[$%*…{]|\.\.\.))",
    re.IGNORECASE,
)
"""Examples of paths, which say nothing about a machine."""


def private_paths(text: str) -> Iterator[re.Match[str]]:
    """Yield the paths of a home folder, a mounted disk or a drive."""
    for mark, pattern in PATTERNS:
        if mark in text:
            yield from (m for m in pattern.finditer(text) if not PLACEHOLDER.match(m[0]))


def shorten(text: str) -> str:
    """Return a text of ours with the paths of this machine cut to their last part.

    >>> shorten("lora-tools shrink /home/me/loras/cat /tmp/small --rank 4")
    'lora-tools shrink cat small --rank 4'
    """
    return PATH.sub(lambda match: _last(match[0]), text)


def is_private(path: str) -> bool:
    """Whether a text is the path of a file or folder, rather than a name on the Hub.

    By the text alone: it may stand in a file of anybody's, and what lies there is not looked at.

    >>> is_private("/data/llama"), is_private("./llama"), is_private("org/llama")
    (True, True, False)
    """
    return path.startswith(("/", ".", "~")) or "\\" in path or path.count("/") > 1


def _last(path: str) -> str:
    return PureWindowsPath(path).name or path
