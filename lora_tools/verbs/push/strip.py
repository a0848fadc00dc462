"""A copy of a safetensors file without the metadata that must not be published."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path

from lora_tools.files.disk import naming
from lora_tools.files.header import read_header
from lora_tools.files.inputs import open_input

COPY = 1 << 24


def strip(source: Path, out: Path, keys: Collection[str]) -> None:
    """Copy a file without these entries of its metadata; every tensor keeps its bytes."""
    read_header(source)  # validates
    with open_input(source) as file, naming(out), out.open("xb") as copy:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        kept = {k: v for k, v in (header.get("__metadata__") or {}).items() if k not in keys}
        header.pop("__metadata__", None)
        text = json.dumps(({"__metadata__": kept} if kept else {}) | header, ensure_ascii=False)
        data = text.encode()
        data += b" " * (-len(data) % 8)  # safetensors aligns its tensors
        copy.write(len(data).to_bytes(8, "little") + data)
        shutil.copyfileobj(file, copy, COPY)
