"""Which files of a folder are published, and why the others are not."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from lora_tools.errors import RefusedError, some
from lora_tools.files.inputs import open_input

KNOWN = (
    "*.safetensors",
    "*.safetensors.index.json",
    "adapter_model.bin",
    "adapter*.gguf",
    "*config.json",
    "lora_tools_report.json",
    "README.md",
    "LICENSE*",
    "NOTICE*",
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.*",
    "*.png",
    "*.jpg",
    "*.jpeg",
    "*.webp",
)
"""What an adapter or a model consists of: everything else is left out and listed."""

WEIGHTS_AND_CONFIGS = re.compile(
    r".*\.(safetensors|bin|gguf|npz|index\.json)|(adapter_)?config\.json"
)
"""The files whose sha256 is listed: those that decide what is computed."""

CHUNK = 1 << 20


class Selection(NamedTuple):
    """The files that go along, by their name in the repository."""

    files: Mapping[str, Path]
    left_out: Mapping[str, str]
    """Other names, and why they stay."""


class Digest(NamedTuple):
    """What tells a file's content from any other: as git counts, and as large files are known."""

    size: int
    oid: str
    sha256: str


def select(folder: Path, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> Selection:
    """Choose the files to publish.

    Those that make up an adapter or a model at the top of the folder, more by ``include``, fewer
    by ``exclude``. Hidden ones never. Raises `RefusedError` for a link that leaves the folder.
    """
    include, exclude = tuple(include), tuple(exclude)
    files, left_out, strays = {}, {}, []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        top = name.partition("/")[0]
        asked = _fits(name, include)
        if top.startswith("."):
            left_out[top] = "hidden"
        elif _fits(name, exclude):
            left_out[name] = "excluded"
        elif path.is_dir():
            continue
        elif asked or ("/" not in name and _fits(name, KNOWN)):
            if not path.is_file():
                left_out[name] = "not a file"
            elif not path.resolve().is_relative_to(folder.resolve()):
                strays.append(f"{name} → {path.resolve()}")
            else:
                files[name] = path
        elif "/" in name:
            left_out.setdefault(f"{top}/", "a folder; --include PATTERN takes files from it")
        else:
            left_out[name] = "no known file of an adapter or a model; --include PATTERN takes it"
    if strays:
        raise RefusedError(f"{folder}: links lead out of the folder: {some(strays)}").hint(
            "Put copies in their place, or leave them out with --exclude."
        )
    return Selection(files, left_out)


def digest(content: Path | bytes) -> Digest:
    """Return the digests of a file or of bytes, in one reading."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    git, sha = hashlib.sha1(b"blob %d\0" % size), hashlib.sha256()
    if isinstance(content, bytes):
        git.update(content)
        sha.update(content)
    else:
        with open_input(content) as file:
            while chunk := file.read(CHUNK):
                git.update(chunk)
                sha.update(chunk)
    return Digest(size, git.hexdigest(), sha.hexdigest())


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
