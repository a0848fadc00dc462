"""What its owner would not want to publish: secrets, and the paths of a machine."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from lora_tools.files.gguf import read_gguf
from lora_tools.files.header import read_header

SECRETS = {
    "a Hugging Face token": r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}",
    "an AWS key": r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])",
    "an API key": r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{20,}",
    "a GitHub token": r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
    "a Slack token": r"(?<![A-Za-z0-9])xox[abprs]-[A-Za-z0-9-]{10,}",
    "a Google key": r"(?<![A-Za-z0-9])AIza[0-9A-Za-z_-]{35}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
SECRET = re.compile("|".join(f"({pattern})" for pattern in SECRETS.values()))

FOLDERS = (
    "home|Users|root|mnt|media|tmp|scratch|workspace|work|data|gpfs|lustre|nfs|fsx|kaggle"
    "|content/drive"
)
PATH = re.compile(
    rf"(?<![\w.~:/-])/(?:{FOLDERS})/[^\s\"'`,;:)\]}}<>|]+"
    r"|(?<![A-Za-z])[A-Za-z]:(?:\\{1,2}|/)(?:Users|home)(?:\\{1,2}|/)[^\s\"'`,;:)\]}<>|]+"
)

TEXTS = (".json", ".md", ".txt", ".yaml", ".yml", ".jinja", ".py", ".toml", ".cfg", ".sh", "")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
"""Their words may look like anything: paths in them say nothing about a machine."""


class Leak(NamedTuple):
    """One place in a file that must not be published."""

    file: str
    place: str
    kind: str
    shown: str
    """Enough to find it by: a secret is cut short."""

    def __str__(self) -> str:
        return f"{self.file}, {self.place}: {self.kind} ({self.shown})"


def leaks(name: str, content: Path | bytes) -> list[Leak]:
    """Find the secrets and private paths of a text file, or of a tensor file's header."""
    suffix = PurePosixPath(name).suffix
    if suffix == ".safetensors" and isinstance(content, Path):
        metadata = read_header(content).metadata
        places = ((f"metadata {key}", f"{key} {value}") for key, value in metadata.items())
    elif suffix == ".gguf" and isinstance(content, Path):
        fields = read_gguf(content).metadata
        places = ((f"field {key}", f"{key} {value}") for key, value in fields.items())
    elif suffix in TEXTS:
        data = content if isinstance(content, bytes) else content.read_bytes()
        lines = data.decode("utf-8", "replace").splitlines()
        places = ((f"line {number}", line) for number, line in enumerate(lines, 1))
    else:
        return []
    paths = PurePosixPath(name).name not in VOCABULARIES
    return [
        Leak(name, place, kind, shown)
        for place, text in places
        for kind, shown in _found(text, paths=paths)
    ]


def shorten(text: str) -> str:
    """Return a text of ours with the paths of this machine cut to their last part.

    >>> shorten("lora-tools shrink /home/me/loras/cat /tmp/small --rank 4")
    'lora-tools shrink cat small --rank 4'
    """
    return PATH.sub(lambda match: _last(match[0]), text)


def is_private(path: str) -> bool:
    """Whether a text is the path of a file or folder, rather than a name on the Hub.

    >>> is_private("/data/llama"), is_private("./llama"), is_private("org/llama")
    (True, True, False)
    """
    return (
        path.startswith(("/", ".", "~"))
        or "\\" in path
        or path.count("/") > 1
        or Path(path).is_dir()
    )


def _found(text: str, *, paths: bool) -> Iterator[tuple[str, str]]:
    for match in SECRET.finditer(text):
        yield tuple(SECRETS)[(match.lastindex or 1) - 1], f"{match[0][:6]}…"
    if paths:
        for match in PATH.finditer(text):
            yield "a private path", match[0]


def _last(path: str) -> str:
    return PureWindowsPath(path).name or path
