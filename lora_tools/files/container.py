"""Containers: the kinds of file that tensors are written to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lora_tools.files.gguf import layout as gguf_layout
from lora_tools.files.header import Spec
from lora_tools.files.layout import Layout, layout


@dataclass(frozen=True, slots=True)
class Container:
    """A kind of file: how its names end, and where it has its tensors."""

    suffix: str
    layout: Callable[[Mapping[str, Spec], Mapping[str, str]], Layout]
    """From every tensor's type and shape, and the header's metadata."""


SAFETENSORS = Container(".safetensors", layout)
GGUF = Container(".gguf", gguf_layout)
