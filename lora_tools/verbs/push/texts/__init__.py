"""The texts in a file: all of a text file, and what people and tools write into binary ones."""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from lora_tools.verbs.push.texts.gguf import gguf
from lora_tools.verbs.push.texts.images import jpeg, png, webp
from lora_tools.verbs.push.texts.notebook import notebook
from lora_tools.verbs.push.texts.pickles import pickled, zipped
from lora_tools.verbs.push.texts.plain import SNIFFED, decoded, encoding
from lora_tools.verbs.push.texts.runs import runs
from lora_tools.verbs.push.texts.safetensors import safetensors
from lora_tools.verbs.push.texts.text import Text, opened, pieces

__all__ = ["Text", "is_searchable", "texts"]

Reader = Callable[[BinaryIO, str], Iterator[Text]]

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".npz")
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def texts(name: str, content: Path | bytes) -> Iterator[Text]:
    """Yield the texts of a file with their places; of none that is not `is_searchable`.

    One reading with bounded memory, whatever the size. Raises `CheckpointError` for damaged tensor
    files and `RefusedError` for compressed text that unpacks to more than can be searched.
    """
    with opened(content) as file:
        if reader := _reader(name, file):
            file.seek(0)
            yield from reader(file, name)


def is_searchable(name: str, content: Path | bytes) -> bool:
    """Whether all text in a file would be found: it is text, weights, an image or a vocabulary."""
    with opened(content) as file:
        return _reader(name, file) is not None


def _reader(name: str, file: BinaryIO) -> Reader | None:
    start = file.read(SNIFFED)
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return safetensors
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return png
    if start.startswith(b"\xff\xd8\xff"):
        return jpeg
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return webp
    if start.startswith(b"GGUF"):
        return gguf
    if suffix in PICKLES and start.startswith(b"PK\x03\x04"):
        return zipped
    if suffix in PICKLES and start.startswith(b"\x80"):
        return pickled
    if path.name in SENTENCEPIECE:
        return runs
    if not encoding(start):
        return None
    return notebook if suffix == ".ipynb" else _plain


def _plain(file: BinaryIO, name: str) -> Iterator[Text]:
    return pieces(decoded(file), numbered=True)
