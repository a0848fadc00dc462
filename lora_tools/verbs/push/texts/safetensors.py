"""The texts of a safetensors file: its metadata and the names of its tensors."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lora_tools.files.header import read_header
from lora_tools.verbs.push.texts.text import Text, pieces


def safetensors(file: BinaryIO, name: str) -> Iterator[Text]:
    """Yield metadata and names. Raises `CheckpointError` for a header that is damaged."""
    header = read_header(Path(file.name))
    for key, value in header.metadata.items():
        yield from pieces([f"{key} {value}"], f"metadata {key}", entry=key)
    for tensor in header.slots:
        yield from pieces([tensor], f"the name of tensor {tensor}")
